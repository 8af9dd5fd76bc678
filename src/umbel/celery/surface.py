"""The table: every module of Celery that the alias has, and where in Umbel its names are.

A string is a module that *is* Umbel's. Else each line says a module of Umbel and the names taken from it; ``a=b`` is
``b`` under the name ``a``. Of a name that stands in several lines the first is taken that is there. Names that are
not listed are looked for in the same modules, in this order.
"""

from __future__ import annotations

from typing import Final

_HERE = "umbel.celery"

_CANVAS = {
    "umbel.canvas": "chain chord chunks group xmap xstarmap StampingVisitor _chain _chord",
    "umbel.signatures": "Signature signature maybe_signature subtask maybe_subtask=maybe_signature",
    f"{_HERE}.abstract": "CallableSignature",
}

_BEAT = "DEFAULT_MAX_INTERVAL BeatLazyFunc ScheduleEntry Scheduler SchedulingError event_t"
_SCHEDULES = "BaseSchedule ParseException crontab crontab_parser maybe_schedule schedstate schedule solar"

#: Module -> where its names come from.
CELERY: Final[dict[str, dict[str, str] | str]] = {
    "celery": {
        "umbel": "Celery Umbel Task Signature current_app current_task maybe_signature shared_task signature subtask "
        "uuid",
        "umbel.canvas": "chain chord chunks group xmap xstarmap",
        f"{_HERE}.version": "SERIES VERSION VERSION_BANNER __version__ version_info version_info_t __author__ "
        "__contact__ __homepage__ __docformat__",
        f"{_HERE}.toplevel": "bugreport maybe_patch_concurrency execute log messaging registry",
    },
    "celery.__main__": {"umbel.__main__": "main"},
    "celery._state": {
        f"{_HERE}.state": "set_default_app get_current_app get_current_task get_current_worker_task current_app "
        "current_task connect_on_app_finalize app_or_default task_join_will_block enable_trace disable_trace "
        "default_app _set_current_app _set_task_join_will_block _task_stack _tls _register_app _deregister_app "
        "_get_active_apps _announce_app_finalized _get_current_app push_current_task pop_current_task",
    },
    # -- the app --
    "celery.app": {
        "umbel": "Celery shared_task",
        f"{_HERE}.state": "app_or_default default_app enable_trace disable_trace push_current_task pop_current_task",
        f"{_HERE}.toplevel": "AppPickler bugreport",
    },
    "celery.app.amqp": {f"{_HERE}.amqp": "AMQP Queues task_message utf8dict"},
    "celery.app.annotations": {f"{_HERE}.annotations": "MapAnnotation prepare resolve_all"},
    "celery.app.autoretry": {"umbel.retrying": "add_autoretry_behaviour"},
    "celery.app.backends": {f"{_HERE}.backends": "by_name by_url"},
    "celery.app.base": {
        "umbel.app": "Celery App=Celery",
        "umbel.settings": "PendingConfiguration=Settings",
        f"{_HERE}.toplevel": "app_has_custom task_callable_qualname",
    },
    "celery.app.control": {"umbel.control": "Control Inspect flatten_reply"},
    "celery.app.defaults": {f"{_HERE}.defaults": "DEFAULTS NAMESPACES Option SETTING_KEYS Namespace find flatten"},
    "celery.app.events": {"umbel.events": "Events"},
    "celery.app.log": {"umbel.utils.log": "Logging TaskFormatter"},
    "celery.app.registry": {"umbel.registry": "TaskRegistry", "umbel.exceptions": "NotRegistered"},
    "celery.app.routes": {
        "umbel.routing": "MapRoute Router prepare=prepare_routes",
        f"{_HERE}.amqp": "expand_router_string",
    },
    "celery.app.task": {"umbel.task": "Context Task BaseTask=Task"},
    "celery.app.trace": {
        f"{_HERE}.trace": "build_tracer fast_trace_task get_log_policy get_task_name reset_worker_optimizations "
        "setup_worker_optimizations task_has_custom trace_ok_t trace_task trace_task_ret TraceInfo "
        "LOG_RECEIVED LOG_SUCCESS LOG_FAILURE LOG_RETRY LOG_IGNORED LOG_REJECTED LOG_INTERNAL_ERROR",
        "umbel.tracing": "logger info=ExceptionInfo",
        "umbel.signatures": "maybe_signature",
    },
    "celery.app.utils": {
        "umbel.settings": "Settings",
        f"{_HERE}.toplevel": "AppPickler appstr bugreport find_app filter_hidden_settings detect_settings",
        "umbel.drivers": "sanitize_url=mask",
    },
    "celery.apps": {},
    "celery.apps.worker": {f"{_HERE}.workers": "Worker safe_say"},
    "celery.apps.multi": {"umbel.cli.multi": "Node"},
    "celery.apps.beat": {f"{_HERE}.beat_program": "Beat"},
    "celery.beat": {
        f"{_HERE}.beats": _BEAT,
        f"{_HERE}.beat_service": "EmbeddedService Service",
        f"{_HERE}.shelved": "PersistentScheduler",
        "umbel.beat.remote": "beat_nodename",
    },
    # -- results --
    "celery.backends": {},
    "celery.backends.base": {
        f"{_HERE}.backends": "Backend BaseBackend BaseDictBackend BaseKeyValueStoreBackend DisabledBackend "
        "KeyValueStoreBackend SyncBackendMixin unpickle_backend",
        "umbel.current": "get_current_task",
    },
    "celery.backends.redis": {"umbel.backends.redis": "RedisBackend"},
    "celery.backends.rpc": {"umbel.backends.rpc": "RPCBackend"},
    "celery.backends.cache": {"umbel.backends.memory": "CacheBackend=MemoryBackend"},
    # -- the command line --
    "celery.bin": {},
    "celery.bin.celery": {"umbel.cli.main": "celery=cli main"},
    "celery.bin.base": {
        f"{_HERE}.commands": "CeleryCommand CeleryDaemonCommand CeleryOption CLIContext COMMA_SEPARATED_LIST "
        "CommaSeparatedList JSON_ARRAY JSON_OBJECT ISO8601 ISO8601_OR_FLOAT LOG_LEVEL handle_preload_options",
    },
    "celery.bin.worker": {"umbel.cli.worker": "worker"},
    "celery.bin.beat": {"umbel.cli.beat": "beat"},
    "celery.bin.call": {"umbel.cli.messages": "call"},
    "celery.bin.result": {"umbel.cli.messages": "result"},
    "celery.bin.purge": {"umbel.cli.messages": "purge"},
    "celery.bin.list": {"umbel.cli.messages": "list_"},
    "celery.bin.shell": {"umbel.cli.shell": "shell"},
    "celery.bin.control": {"umbel.cli.remote": "control inspect status"},
    "celery.bin.events": {"umbel.cli.events": "events"},
    "celery.bin.multi": {"umbel.cli.multi": "multi"},
    "celery.bin.migrate": {"umbel.cli.migrate": "migrate"},
    "celery.bin.graph": {"umbel.cli.graph": "graph"},
    "celery.bin.logtool": {"umbel.cli.logtool": "logtool"},
    "celery.bin.upgrade": {"umbel.cli.upgrade": "upgrade"},
    "celery.bin.amqp": {"umbel.cli.amqp": "amqp"},
    "celery.bootsteps": "umbel.celery.bootsteps",
    "celery.canvas": _CANVAS,
    "celery.concurrency": {f"{_HERE}.pools": "get_available_pool_names get_implementation"},
    "celery.concurrency.base": {f"{_HERE}.pools": "BasePool apply_target"},
    # -- contrib --
    "celery.contrib": {},
    "celery.contrib.abortable": "umbel.contrib.abortable",
    "celery.contrib.django": {},
    "celery.contrib.django.task": {"umbel.contrib.django.task": "DjangoTask"},
    "celery.contrib.migrate": {
        "umbel.contrib.migrate": "State StopFiltering expand_dest filter_callback filter_status migrate_task "
        "migrate_tasks move move_by_idmap move_by_taskmap move_direct move_direct_by_id move_direct_by_idmap "
        "move_direct_by_taskmap move_task_by_id prepare_queues republish task_id_eq task_id_in",
    },
    "celery.contrib.pytest": "umbel.contrib.pytest",
    "celery.contrib.rdb": "umbel.contrib.rdb",
    "celery.contrib.testing": {},
    # Importing these does something, so they are Umbel's own modules.
    "celery.contrib.testing.app": "umbel.contrib.testing.app",
    "celery.contrib.testing.manager": "umbel.contrib.testing.manager",
    "celery.contrib.testing.mocks": "umbel.contrib.testing.mocks",
    "celery.contrib.testing.tasks": "umbel.contrib.testing.tasks",
    "celery.contrib.testing.worker": "umbel.contrib.testing.worker",
    # -- events --
    "celery.events": {
        "umbel.events": "Event EventDispatcher EventReceiver group_from",
        f"{_HERE}.entities": "event_exchange get_exchange",
    },
    "celery.events.dispatcher": {"umbel.events.dispatcher": "EventDispatcher"},
    "celery.events.cursesmon": {"umbel.events.screen": "CursesMonitor evtop"},
    "celery.events.dumper": {"umbel.events.dumper": "Dumper evdump"},
    "celery.events.event": {
        "umbel.events.event": "Event group_from",
        f"{_HERE}.entities": "event_exchange get_exchange",
    },
    "celery.events.receiver": {"umbel.events.receiver": "EventReceiver"},
    "celery.events.snapshot": {"umbel.events.snapshot": "Polaroid evcam"},
    "celery.events.state": {"umbel.events.state": "State Task Worker heartbeat_expires"},
    "celery.exceptions": {
        "umbel.exceptions": "AlreadyRegistered AlwaysEagerIgnored BackendError BackendGetMetaError BackendStoreError "
        "CeleryError CeleryWarning ChordError DuplicateNodenameWarning DuplicateTaskNameWarning FixupWarning Ignore "
        "ImproperlyConfigured IncompleteStream InvalidTaskError MaxRetriesExceededError NotConfigured NotRegistered "
        "OperationalError QueueNotFound Reject Retry RetryTaskError=Retry SecurityError SecurityWarning "
        "SoftTimeLimitExceeded SystemTerminate=WorkerTerminate TaskError TaskPredicate TaskRevokedError Terminated "
        "TimeLimitExceeded TimeoutError WorkerLostError WorkerShutdown WorkerTerminate",
        f"{_HERE}.deprecations": "CDeprecationWarning CPendingDeprecationWarning CeleryCommandException reraise",
    },
    "celery.fixups": {},
    "celery.fixups.django": {"umbel.contrib.django.fixup": "DjangoFixup DjangoWorkerFixup fixup"},
    "celery.loaders": {f"{_HERE}.loaders": "get_loader_cls"},
    "celery.loaders.app": {f"{_HERE}.loaders": "AppLoader"},
    "celery.loaders.base": {f"{_HERE}.loaders": "BaseLoader autodiscover_tasks find_related_module"},
    "celery.loaders.default": {f"{_HERE}.loaders": "DEFAULT_CONFIG_MODULE Loader"},
    "celery.local": {
        "umbel.utils.proxy": "Proxy",
        f"{_HERE}.local": "PromiseProxy class_property getappattr maybe_evaluate reclassmethod try_import",
    },
    "celery.platforms": {
        f"{_HERE}.platforms": "EX_CANTCREAT EX_FAILURE EX_OK EX_UNAVAILABLE EX_USAGE IS_WINDOWS IS_macOS LockFailed "
        "PIDFile Pidfile SIGMAP SYSTEM Signals check_privileges close_open_fds create_pidlock detached fd_by_path "
        "get_errno_name get_fdmax ignore_errno isatty maybe_drop_privileges parse_gid parse_uid pyimplementation "
        "initgroups set_mp_process_title set_pdeathsig set_process_title setgid setgroups setuid signal_name signals "
        "strargv",
    },
    "celery.result": "umbel.result",
    "celery.schedules": {"umbel.schedules": _SCHEDULES},
    "celery.security": {"umbel.security": "setup_security"},
    "celery.security.certificate": {"umbel.security": "CertStore Certificate FSCertStore"},
    "celery.security.key": {"umbel.security": "PrivateKey"},
    "celery.security.serialization": {"umbel.security": "SecureSerializer register_auth"},
    "celery.security.utils": {"umbel.security": "get_digest_algorithm"},
    "celery.signals": "umbel.signals",
    "celery.states": "umbel.states",
    # -- utils --
    "celery.utils": {
        "umbel.utils.log": "LOG_LEVELS",
        "umbel.utils.identity": "uuid gen_unique_id=uuid",
        "umbel.utils.nodenames": "nodename nodesplit",
        "umbel.loading": "import_from_cwd get_cls_by_name=symbol_by_name",
        "umbel.registry": "get_full_cls_name=qualname",
        f"{_HERE}.functional": "cached_property chunks memoize noop",
        f"{_HERE}.imports": "gen_task_name instantiate",
        f"{_HERE}.amqp": "worker_direct",
    },
    "celery.utils.abstract": {f"{_HERE}.abstract": "CallableSignature CallableTask"},
    "celery.utils.collections": {
        f"{_HERE}.containers": "AttributeDict AttributeDictMixin BufferMap ChainMap ConfigurationView DictAttribute "
        "Evictable LimitedSet Messagebuffer OrderedDict force_mapping lpmerge",
    },
    "celery.utils.debug": {
        f"{_HERE}.debug": "blockdetection cry humanbytes mem_rss memdump ps sample sample_mem",
    },
    "celery.utils.deprecated": {f"{_HERE}.deprecations": "Callable=deprecated Property=deprecated_property warn"},
    "celery.utils.dispatch": {"umbel.signals": "Signal"},
    "celery.utils.dispatch.signal": {"umbel.signals": "Signal"},
    "celery.utils.functional": {
        f"{_HERE}.functional": "DummyContext LRUCache arity_greater chunks dictfilter evaluate_promises first "
        "firstmethod fun_accepts_kwargs fun_takes_argument head_from_fun is_list is_numeric_value lazy lookahead "
        "mattrgetter maybe maybe_evaluate maybe_list memoize mlazy noop padlist pass1 regen seq_concat_item "
        "seq_concat_seq uniq",
    },
    "celery.utils.graph": {"umbel.utils.graph": "DependencyGraph"},
    "celery.utils.imports": {
        "umbel.loading": "cwd_in_path import_from_cwd symbol_by_name",
        "umbel.registry": "qualname",
        f"{_HERE}.imports": "NotAPackage find_module gen_task_name instantiate load_extension_class_names "
        "load_extension_classes module_file reload_from_cwd",
    },
    "celery.utils.iso8601": {f"{_HERE}.times": "parse_iso8601"},
    "celery.utils.log": {
        "umbel.utils.log": "ColorFormatter LOG_LEVELS LoggingProxy base_logger get_logger get_task_logger "
        "in_sighandler "
        "mlevel set_in_sighandler task_logger worker_logger",
        f"{_HERE}.toplevel": "current_process current_process_index get_multiprocessing_logger "
        "reset_multiprocessing_logger",
    },
    "celery.utils.nodenames": {
        "umbel.utils.nodenames": "NODENAME_DEFAULT NODENAME_SEP anon_nodename default_nodename gethostname host_format "
        "node_format nodename nodesplit",
        f"{_HERE}.amqp": "worker_direct",
    },
    "celery.utils.objects": {f"{_HERE}.containers": "Bunch FallbackContext getitem_property mro_lookup"},
    "celery.utils.saferepr": {"umbel.saferepr": "saferepr", f"{_HERE}.texts": "reprstream"},
    "celery.utils.serialization": {
        f"{_HERE}.serialize": "UnpickleableExceptionWrapper b64decode b64encode create_exception_cls "
        "ensure_serializable "
        "find_pickleable_exception get_pickleable_etype get_pickleable_exception get_pickled_exception itermro "
        "jsonify raise_with_context strtobool subclass_exception",
    },
    "celery.utils.sysinfo": {
        f"{_HERE}.debug": "AUTO_CONCURRENCY available_cpu_count df is_auto_concurrency load_average",
    },
    "celery.utils.term": {f"{_HERE}.texts": "colored supports_images"},
    "celery.utils.text": {
        f"{_HERE}.texts": "abbr abbrtask dedent dedent_initial ensure_newlines ensure_sep fill_paragraphs indent join "
        "match_case pluralize pretty remove_repeating remove_repeating_from_task simple_format str_to_list truncate "
        "WhateverIO",
    },
    "celery.utils.threads": {
        f"{_HERE}.threads": "Local LocalManager LocalStack bgThread default_socket_timeout get_ident release_local",
    },
    "celery.utils.time": {
        f"{_HERE}.times": "LocalTimezone add_seconds_to_datetime adjust_timestamp delta_resolution ffwd "
        "get_exponential_backoff_interval is_naive localize make_aware maybe_iso8601 maybe_make_aware maybe_timedelta "
        "rate remaining subtract_datetimes timezone to_utc utcoffset",
        "umbel.utils.time": "humanize_seconds weekday yearmonth",
    },
    "celery.utils.timer2": {f"{_HERE}.timer": "Entry Timer to_timestamp"},
    # -- the worker --
    "celery.worker": {f"{_HERE}.workers": "WorkController"},
    "celery.worker.worker": {f"{_HERE}.workers": "WorkController"},
    "celery.worker.components": {f"{_HERE}.components": "Autoscaler Beat Consumer Hub Pool StateDB Timer"},
    "celery.worker.consumer": {
        f"{_HERE}.components": "Agent Connection Consumer Control Events Gossip Heart Mingle Tasks"
    },
    **{
        f"celery.worker.consumer.{name}": {f"{_HERE}.components": cls}
        for name, cls in {
            "agent": "Agent", "connection": "Connection", "consumer": "Consumer", "control": "Control",
            "delayed_delivery": "DelayedDelivery", "events": "Events", "gossip": "Gossip", "heart": "Heart",
            "mingle": "Mingle", "tasks": "Tasks",
        }.items()
    },
    "celery.worker.control": {
        "umbel.worker.control": "Panel control_command inspect_command nok ok controller_info_t",
        "umbel.worker.control_commands": "",
        "umbel.worker.inspect_commands": "",
    },
    "celery.worker.request": {f"{_HERE}.workers": "Request create_request_cls"},
    "celery.worker.state": "umbel.celery.worker_state",
    "celery.worker.strategy": {f"{_HERE}.workers": "default"},
}  # fmt: skip
