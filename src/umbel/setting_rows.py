"""The table of all settings: one row each, and nothing about a setting is said anywhere else.

A name, a type and the old name of a Celery setting are Celery's; :data:`CHANGED` lists the defaults that are not.
``docs/settings.md`` is made from this table by ``python docs/make_settings.py``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_LOG_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"


class Setting(msgspec.Struct, frozen=True):
    """One row: what a setting is called, what it may hold, and what it is for.

    ``effect`` says whether it does something in this build; one that does not is accepted and kept.
    """

    name: str
    type: str
    default: Any
    old_name: str
    doc: str
    effect: bool = False


def _(name: str, type_: str, default: Any, old: str, doc: str, effect: bool = False) -> Setting:
    # The name is one character and the arguments have no names, so that a row fits on one line.
    # In an old name, "=" stands for the whole new name and "*" for what follows its first underscore.
    old_name = old.replace("=", name.upper()).replace("*", name.partition("_")[2].upper())
    return Setting(name, type_, default, old_name, doc, effect)


_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_max": 1, "interval_step": 0.2}
_POOL_OPTIONS = {"pool_pre_ping": True, "pool_recycle": 3600}

_UMBEL = (
    _("lease_ttl", "positive", 30.0, "", "Seconds after which the work of a silent worker is taken over.", True),
    _("lease_heartbeat", "positive", 10.0, "", "Seconds between two renewals; at most a third of `lease_ttl`.", True),
    _("lease_sweep", "positive", 10.0, "", "Seconds, ± 20 %, between two looks for silent workers.", True),
    _("max_deliveries", "int | none", 5, "", "Deliveries that may crash before a message is a dead letter.", True),
    _("max_message_size", "int", 16 << 20, "", "Bytes of the largest body that is sent or read.", True),
    _("redelivery_backoff", "numbers | none", (1, 5, 30, 120), "", "Seconds before the 3rd, 4th, … delivery.", True),
    _("publish_timeout", "positive", 2.0, "", "Seconds to connect, send and be confirmed, retries included.", True),
    _("publish_confirm", "bool", True, "", "Publishing always returns only when the broker has confirmed."),
    _("publish_dedupe", "float", 120.0, "", "Seconds for which a repeated task id is recognised; 0: off.", True),
    _("settle_window", "float", 0.002, "", "Seconds for which outcomes are gathered; 0: one by one.", True),
    _("stuck_after", "positive", None, "", "Seconds after which a process that makes no progress is killed.", True),
    _("durability", "strict", None, "", '"strict" refuses a broker that may forget what it confirmed.', True),
    _("history_file", "string", None, "", "Where the history of tasks is kept; none: beside the queues' file.", True),
    _("history_max_tasks", "int", 200_000, "", "Tasks that the history keeps; 0: all.", True),
    _("history_max_age", "float", 1_209_600.0, "", "Seconds for which it keeps a task; 0: for ever.", True),
    _("events", "any", None, "", "Which events to send; none: those that someone asked for."),
    _(
        "task_on_lost",
        "requeue | retry | fail",
        None,
        "",
        "After a lost worker; none: `task_*_on_worker_lost`.",
        True,
    ),
    _("task_unknown_backoff", "numbers | none", (5, 30, 120, 600), "", "Pauses of an unknown task, seconds.", True),
    _("task_dead_letter_exhausted", "bool", False, "", "A task out of retries becomes a dead letter too.", True),
    _("task_dead_letter_expired", "bool", False, "", "So does one that expired before it started.", True),
    _("worker_max_age_per_child", "float", None, "", "Seconds after which a process is replaced.", True),
    _("worker_processes", "int", None, "", "Processes of one worker; none: what the pool needs.", True),
    _("worker_shutdown_timeout", "float | none", 25.0, "", "Seconds that running tasks get at a stop.", True),
)

_GENERAL = (
    _("accept_content", "list", ("json",), "CELERY_=", "Content types that are decoded; others are refused.", True),
    _("accept_unsafe", "bool", False, "", "Serializers that run a writer's code (pickle) may be used.", True),
    _("enable_utc", "bool", True, "=", "Moments in messages are UTC.", True),
    _("imports", "tuple", (), "CELERY_=", "Modules that a worker imports at start.", True),
    _("include", "tuple", (), "CELERY_=", "More modules to import, as given to the constructor.", True),
    _("timezone", "timezone", None, "CELERY_=", "Zone of naive times and of schedules; none: UTC.", True),
)

_BROKER = (
    _("broker_url", "url", None, "=", "Where messages go; none: an SQLite file (see `umbel report`).", True),
    _("broker_read_url", "url", None, "=", "Where workers read, if not at `broker_url`; see below.", True),
    _("broker_write_url", "url", None, "=", "Where `delay()` publishes, if not there; see below.", True),
    _("broker_transport", "symbol", None, "=", "The URL's scheme when only `broker_host` is given.", True),
    _("broker_transport_options", "dict", {}, "=", "Options for the broker's driver; see below.", True),
    _("broker_connection_timeout", "float | none", 4, "=", "Seconds to wait for a connection.", True),
    _("broker_connection_retry", "bool", True, "=", "Reconnect after the connection was lost.", True),
    _("broker_connection_retry_on_startup", "bool", None, "=", "The same at start; none: as after a loss.", True),
    _("broker_connection_max_retries", "int | none", 100, "=", "Attempts before a worker gives up.", True),
    _("broker_channel_error_retry", "bool", False, "=", "Also reconnect after an invalid answer."),
    _("broker_failover_strategy", "symbol", None, "=", "Order of several URLs: round-robin or shuffle.", True),
    _("broker_heartbeat", "float | none", 120, "=", "Seconds between AMQP heartbeats.", True),
    _("broker_heartbeat_checkrate", "float", 3.0, "=", "Checks per AMQP heartbeat."),
    _("broker_login_method", "string", None, "=", "The AMQP login method.", True),
    _("broker_native_delayed_delivery_queue_type", "string", "quorum", "=", "Queue type of RabbitMQ's delays.", True),
    _("broker_pool_limit", "int | none", 10, "=", "Connections that one process may keep open."),
    _("broker_pool_acquire_timeout", "float", None, "=", "Seconds to wait for one of them."),
    _("broker_use_ssl", "bool | dict", False, "=", "TLS to the broker, and its options.", True),
    _("broker_host", "string", None, "=", "The URL in parts, where `broker_url` is not given.", True),
    _("broker_port", "int", None, "=", "The port for `broker_host`.", True),
    _("broker_user", "string", None, "=", "The user for `broker_host`.", True),
    _("broker_password", "string", None, "=", "The password for `broker_host`.", True),
    _("broker_vhost", "string", None, "=", "The virtual host or database for `broker_host`.", True),
)

_TASK = (
    _("task_acks_late", "bool", True, "CELERY_*", "Acknowledge after the task ran, so a crash loses nothing.", True),
    _("task_acks_on_failure_or_timeout", "bool", True, "CELERY_*", "A failed task is acknowledged too.", True),
    _("task_acks_on_failure", "bool", None, "CELERY_*", "The same, for failures only.", True),
    _("task_acks_on_timeout", "bool", None, "CELERY_*", "The same, for time limits only.", True),
    _("task_allow_from_message", "list", None, "", "Tasks that links, chains and chords may run; none: all.", True),
    _("task_always_eager", "bool", False, "CELERY_*", "Run in the caller at once; for tests.", True),
    _("task_annotations", "any", None, "CELERY_*", "Attributes to change on tasks, by name.", True),
    _("task_compression", "string", None, "CELERY_MESSAGE_*", "How messages are compressed.", True),
    _("task_create_missing_queues", "bool", True, "CELERY_*", "A queue not in `task_queues` may be used.", True),
    _("task_create_missing_queue_type", "string", "classic", "CELERY_*", "RabbitMQ: the type of such a queue.", True),
    _("task_create_missing_queue_exchange_type", "string", None, "CELERY_*", "Its exchange's type.", True),
    _("task_inherit_parent_priority", "bool", False, "CELERY_*", "A task sent by a task gets its priority.", True),
    _("task_default_delivery_mode", "any", 2, "CELERY_*", "2: persistent, 1: transient.", True),
    _("task_default_queue", "string", "celery", "CELERY_*", "The queue of tasks without a route.", True),
    _("task_default_queue_type", "string", "classic", "CELERY_*", "RabbitMQ: its type.", True),
    _("task_default_exchange", "string", None, "CELERY_*", "Its exchange; none: the queue's name.", True),
    _("task_default_exchange_type", "string", "direct", "CELERY_*", "Its exchange's type.", True),
    _("task_default_routing_key", "string", None, "CELERY_*", "Its routing key; none: the queue's name.", True),
    _("task_default_rate_limit", "any", None, "CELERY_*", "The rate limit of tasks that have none.", True),
    _("task_default_priority", "int", None, "CELERY_*", "The priority of tasks that have none.", True),
    _("task_eager_propagates", "bool", False, "CELERY_*_EXCEPTIONS", "An eager task raises in the caller.", True),
    _("task_ignore_result", "bool", False, "CELERY_*", "Results are not stored.", True),
    _("task_store_eager_result", "bool", False, "CELERY_*", "Results of eager tasks are stored.", True),
    _("task_protocol", "int", 2, "CELERY_=", "Version of the messages that are sent: 2, or the old 1.", True),
    _("task_publish_retry", "bool", True, "CELERY_=", "Try again when the broker cannot be reached.", True),
    _("task_publish_retry_policy", "dict", _RETRY_POLICY, "CELERY_=", "How often, and how long between.", True),
    _("task_queues", "any", None, "CELERY_*", "The queues that a worker reads by default.", True),
    _("task_queue_max_priority", "int", None, "CELERY_*", "RabbitMQ: the highest priority of new queues.", True),
    _("task_reject_on_worker_lost", "bool", True, "CELERY_*", "A lost worker's task goes back to its queue.", True),
    _("task_retry_on_worker_lost", "bool", False, "CELERY_*", "It counts as a retry instead.", True),
    _("task_remote_tracebacks", "bool", False, "CELERY_*", "Raised errors carry the worker's traceback.", True),
    _("task_repr_maxlevels", "int", 3, "CELERY_*", "How deep arguments are shown in `argsrepr`."),
    _("task_routes", "any", None, "CELERY_*", "Which task goes to which queue.", True),
    _("task_send_sent_event", "bool", False, "CELERY_SEND_TASK_SENT_EVENT", "Clients send `task-sent` events.", True),
    _("task_serializer", "string", "json", "CELERY_=", "How arguments are encoded.", True),
    _("task_soft_time_limit", "float", None, "CELERYD_=", "Seconds after which a task is asked to end.", True),
    _("task_time_limit", "float", None, "CELERYD_=", "Seconds after which a task is killed.", True),
    _("task_store_errors_even_if_ignored", "bool", False, "CELERY_*", "Errors are stored all the same.", True),
    _("task_track_started", "bool", False, "CELERY_*", "The state STARTED is stored.", True),
    _("task_allow_error_cb_on_chord_header", "bool", False, "CELERY_*", "A chord's errback is its header's too.", True),
)

_WORKER = (
    _("worker_agent", "symbol", None, "CELERYD_*", "A class to run beside the worker."),
    _("worker_autoscaler", "symbol", "celery.worker.autoscale:Autoscaler", "CELERYD_*", "The class that autoscales."),
    _("worker_cancel_long_running_tasks_on_connection_loss", "bool", False, "CELERYD_*", "Not needed here."),
    _("worker_soft_shutdown_timeout", "float", 0.0, "CELERYD_*", "Seconds of grace before a cold stop.", True),
    _("worker_enable_soft_shutdown_on_idle", "bool", False, "CELERYD_*", "The same when nothing runs."),
    _("worker_concurrency", "int | auto", None, "CELERYD_*", "Tasks run at once; none: the number of CPUs.", True),
    _("worker_consumer", "symbol", "celery.worker.consumer:Consumer", "CELERYD_*", "Celery's consumer class."),
    _("worker_direct", "bool", False, "CELERY_=", "Each worker also has a queue of its own."),
    _("worker_disable_rate_limits", "bool", False, "CELERY_*", "Rate limits are not kept.", True),
    _("worker_deduplicate_successful_tasks", "bool", False, "CELERYD_*", "A task that succeeded is not run again."),
    _("worker_enable_remote_control", "bool", True, "CELERY_*", "The worker answers remote control.", True),
    _("worker_hijack_root_logger", "bool", True, "CELERYD_*", "Handlers of the root logger are replaced.", True),
    _("worker_log_color", "bool", None, "CELERYD_*", "Colours in the log; none: if it is a terminal.", True),
    _("worker_log_datefmt", "string", None, "CELERYD_*", "The date format of the log.", True),
    _("worker_log_format", "string", LOG_FORMAT, "CELERYD_*", "The format of the log.", True),
    _("worker_log_json", "bool", False, "", "The log is JSON, one object in each line; see the page on metrics.", True),
    _("worker_lost_wait", "float", 10.0, "CELERYD_WORKER_*", "Not needed here: a death is seen at once."),
    _("worker_max_memory_per_child", "int", None, "CELERYD_*", "KiB after which a process is replaced.", True),
    _("worker_max_tasks_per_child", "int", None, "CELERYD_*", "Tasks after which a process is replaced.", True),
    _("worker_pool", "symbol", "prefork", "CELERYD_*", "How tasks are run: prefork, threads, solo, asyncio.", True),
    _("worker_pool_putlocks", "bool", True, "CELERYD_*", "Not needed here."),
    _("worker_pool_restarts", "bool", False, "CELERYD_*", "`pool_restart` is allowed.", True),
    _("worker_pool_start_method", "string", "fork", "CELERYD_*", "How processes are started: fork or spawn.", True),
    _("worker_proc_alive_timeout", "float", 4.0, "CELERYD_*", "Not needed here."),
    _("worker_prefetch_multiplier", "int", 4, "CELERYD_*", "Most messages read ahead per slot; 0: no bound.", True),
    _("worker_eta_task_limit", "int", None, "CELERYD_*", "Not needed here: delayed tasks wait in the broker."),
    _("worker_enable_prefetch_count_reduction", "bool", True, "CELERYD_*", "Not needed here."),
    _("worker_disable_prefetch", "bool", False, "CELERYD_*", "Read one message at a time.", True),
    _("worker_redirect_stdouts", "bool", True, "CELERY_*", "What tasks print goes to the log.", True),
    _("worker_redirect_stdouts_level", "symbol", "WARNING", "CELERY_*", "The level at which it is logged.", True),
    _("worker_send_task_events", "bool", False, "CELERY_SEND_EVENTS", "Send events about tasks.", True),
    _("worker_state_db", "string", None, "CELERYD_*", "Not needed here: revokes are kept in a store."),
    _("worker_task_log_datefmt", "string", None, "CELERYD_*", "The date format of task logs.", True),
    _("worker_task_log_format", "string", TASK_LOG_FORMAT, "CELERYD_*", "The format of task logs.", True),
    _("worker_timer", "symbol", None, "CELERYD_*", "Celery's timer class."),
    _("worker_timer_precision", "float", 1.0, "CELERYD_*", "Not needed here."),
    _("worker_detect_quorum_queues", "bool", True, "CELERYD_*", "RabbitMQ: look for quorum queues."),
)

_RESULT = (
    _("result_accept_content", "list", None, "=", "As `accept_content`, for results; none: the same.", True),
    _("result_backend", "symbol", None, "CELERY_=", "Where results are kept; none: see below the table.", True),
    _("result_cache_max", "int", -1, "CELERY_MAX_CACHED_RESULTS", "Results kept in memory; -1: none."),
    _("result_compression", "string", None, "CELERY_=", "How results are compressed.", True),
    _("result_exchange", "string", "celeryresults", "CELERY_=", "AMQP results: their exchange."),
    _("result_exchange_type", "string", "direct", "CELERY_=", "AMQP results: its type."),
    _("result_expires", "seconds | none", timedelta(days=1), "CELERY_TASK_=", "How long results are kept.", True),
    _("result_chord_expires", "seconds", None, "CELERY_=", "The same for chords; none: `result_expires`.", True),
    _("result_failure_expires", "seconds", None, "CELERY_=", "The same for failures; none: `result_expires`."),
    _("result_persistent", "bool", None, "CELERY_=", "AMQP results survive a restart of the broker.", True),
    _("result_extended", "bool", False, "CELERY_=", "Name, arguments, worker and queue are stored too.", True),
    _("result_serializer", "string", "json", "CELERY_=", "How results are encoded.", True),
    _("result_store_traceback", "bool", True, "", "The traceback of an error is stored with it.", True),
    _("result_backend_transport_options", "dict", {}, "CELERY_=", "Options for the backend's driver; see below.", True),
    _("result_chord_retry_interval", "float", 1.0, "CELERY_=", "Seconds between looks at a chord of Celery's.", True),
    _("result_chord_join_timeout", "float", 3.0, "CELERY_=", "Seconds to wait for the results of one.", True),
    _("result_backend_max_sleep_between_retries_ms", "int", 10000, "CELERY_=", "Longest pause of a retry."),
    _("result_backend_max_retries", "float | none", float("inf"), "CELERY_=", "Retries of a failed store."),
    _("result_backend_base_sleep_between_retries_ms", "int", 10, "CELERY_=", "First pause of a retry."),
    _("result_backend_always_retry", "bool", False, "CELERY_=", "Retry whatever the store's error."),
)

_REDIS = (
    _("redis_backend_use_ssl", "bool | dict", None, "CELERY_=", "TLS to the result backend, and its options.", True),
    _("redis_db", "int", None, "CELERY_=", "The database, where the URL names none.", True),
    _("redis_host", "string", None, "CELERY_=", 'The host for `result_backend="redis"`.', True),
    _("redis_max_connections", "int", None, "CELERY_=", "Not needed here: there are as many as threads that wait."),
    _("redis_username", "string", None, "CELERY_=", "The user, where the URL names none.", True),
    _("redis_password", "string", None, "CELERY_=", "The password, where the URL has none.", True),
    _("redis_port", "int", None, "CELERY_=", "The port for `redis_host`.", True),
    _("redis_socket_timeout", "float | none", 5.0, "CELERY_=", "Seconds to wait for an answer; none: 5.", True),
    _("redis_socket_connect_timeout", "float", None, "CELERY_=", "Seconds to wait for a connection.", True),
    _("redis_retry_on_timeout", "bool", False, "CELERY_=", "Not needed here: whoever waits for a result asks again."),
    _("redis_socket_keepalive", "bool", False, "CELERY_=", "TCP keepalive.", True),
)

_BEAT = (
    _("beat_enable_remote_control", "bool", False, "CELERYBEAT_*", "Beat answers `umbel inspect ping`.", True),
    _("beat_remote_control_max_tick_age", "float", None, "CELERYBEAT_*", "Seconds until a silent beat is ill.", True),
    _("beat_max_loop_interval", "float", 0, "CELERYBEAT_*", "Most seconds between two looks; at most 2.", True),
    _("beat_schedule", "dict", {}, "CELERYBEAT_*", "What is sent when.", True),
    _(
        "beat_scheduler",
        "symbol",
        "celery.beat:PersistentScheduler",
        "CELERYBEAT_*",
        "Another class; this is ours.",
        True,
    ),
    _("beat_schedule_filename", "string", "celerybeat-schedule", "CELERYBEAT_*", "For a scheduler with a file.", True),
    _("beat_sync_every", "int", 0, "CELERYBEAT_*", "Sends between two writes of that file.", True),
    _("beat_cron_starting_deadline", "int", None, "CELERYBEAT_*", "`deadline` of crontabs that say none.", True),
)

_EVENT = (
    _("event_queue_expires", "float | none", 60.0, "CELERY_=", "Seconds until an unused event queue goes."),
    _("event_queue_ttl", "float | none", 5.0, "CELERY_=", "Seconds that an event is kept."),
    _("event_queue_prefix", "string", "celeryev", "CELERY_=", "How event queues are called."),
    _("event_queue_exclusive", "bool", True, "CELERY_=", "Event queues belong to one connection."),
    _("event_queue_durable", "bool", False, "CELERY_=", "Event queues survive a restart of the broker."),
    _("event_serializer", "string", "json", "CELERY_=", "How events are encoded.", True),
    _("event_exchange", "string", "celeryev", "CELERY_=", "The exchange of events.", True),
    _("control_queue_ttl", "float | none", 300.0, "=", "Seconds that a command is kept."),
    _("control_queue_expires", "float | none", 10.0, "=", "Seconds until an unused command queue goes."),
    _("control_queue_exclusive", "bool", True, "=", "Command queues belong to one connection."),
    _("control_queue_durable", "bool", False, "=", "Command queues survive a restart of the broker."),
    _("control_exchange", "string", "celery", "=", "The exchange of remote control, before `.pidbox`.", True),
)

_SECURITY = (
    _("security_key", "keys", None, "CELERY_=", "Keys of signed messages; with a certificate: its key's file.", True),
    _("security_accept_unsigned", "bool", False, "", "Workers with a key also run unsigned messages.", True),
    _("security_max_age", "positive", None, "", "Seconds after signing (or `eta`) in which a message is run.", True),
    _("security_certificate", "string", None, "CELERY_=", "`auth`: the certificate file that signs.", True),
    _("security_cert_store", "string", None, "CELERY_=", "`auth`: the certificates that are trusted.", True),
    _("security_key_password", "bytes", None, "CELERY_=", "`auth`: the private key's password.", True),
    _("security_digest", "string", "sha256", "CELERY_=", "`auth`: the digest of signatures.", True),
)

_STORES = (
    _("database_url", "string", None, "CELERY_RESULT_DBURI", "SQL results: where."),
    _("database_engine_options", "dict", _POOL_OPTIONS, "CELERY_RESULT_ENGINE_OPTIONS", "SQL results: the engine."),
    _("database_engine_callback", "any", None, "=", "SQL results: called with a new engine."),
    _("database_short_lived_sessions", "bool", False, "CELERY_RESULT_DB_*", "SQL results: one session per call."),
    _("database_table_schemas", "dict", None, "=", "SQL results: the schemas of the tables."),
    _("database_table_names", "dict", None, "CELERY_RESULT_DB_TABLENAMES", "SQL results: the names of the tables."),
    _("database_create_tables_at_setup", "bool", True, "=", "SQL results: create the tables at start."),
    _("cache_backend", "string", None, "CELERY_=", "Memcached results: where."),
    _("cache_backend_options", "dict", {}, "CELERY_=", "Memcached results: options."),
    _("mongodb_backend_settings", "dict", None, "CELERY_=", "MongoDB results."),
    _("couchbase_backend_settings", "dict", None, "CELERY_=", "Couchbase results."),
    _("arangodb_backend_settings", "dict", None, "CELERY_=", "ArangoDB results."),
    _("cassandra_entry_ttl", "float", None, "=", "Cassandra results: seconds kept."),
    _("cassandra_keyspace", "string", None, "=", "Cassandra results: the keyspace."),
    _("cassandra_port", "any", None, "=", "Cassandra results: the port."),
    _("cassandra_read_consistency", "string", None, "=", "Cassandra results: consistency of reads."),
    _("cassandra_servers", "list", None, "=", "Cassandra results: the hosts."),
    _("cassandra_bundle_path", "string", None, "=", "Cassandra results: the secure-connect bundle."),
    _("cassandra_table", "string", None, "=", "Cassandra results: the table."),
    _("cassandra_write_consistency", "string", None, "=", "Cassandra results: consistency of writes."),
    _("cassandra_auth_provider", "string", None, "=", "Cassandra results: the authentication class."),
    _("cassandra_auth_kwargs", "any", None, "=", "Cassandra results: its arguments."),
    _("cassandra_options", "dict", {}, "=", "Cassandra results: options of the cluster."),
    _("s3_access_key_id", "string", None, "=", "S3 results: the key."),
    _("s3_secret_access_key", "string", None, "=", "S3 results: its secret."),
    _("s3_bucket", "string", None, "=", "S3 results: the bucket."),
    _("s3_base_path", "string", None, "=", "S3 results: the folder."),
    _("s3_endpoint_url", "string", None, "=", "S3 results: the endpoint."),
    _("s3_region", "string", None, "=", "S3 results: the region."),
    _("azureblockblob_container_name", "string", "celery", "=", "Azure results: the container."),
    _("azureblockblob_retry_initial_backoff_sec", "int", 2, "=", "Azure results: the first pause."),
    _("azureblockblob_retry_increment_base", "int", 2, "=", "Azure results: how pauses grow."),
    _("azureblockblob_retry_max_attempts", "int", 3, "=", "Azure results: attempts."),
    _("azureblockblob_base_path", "string", "", "=", "Azure results: the folder."),
    _("azureblockblob_connection_timeout", "int", 20, "=", "Azure results: seconds to connect."),
    _("azureblockblob_read_timeout", "int", 120, "=", "Azure results: seconds to read."),
    _("gcs_bucket", "string", None, "=", "Google results: the bucket."),
    _("gcs_project", "string", None, "=", "Google results: the project."),
    _("gcs_base_path", "string", "", "=", "Google results: the folder."),
    _("gcs_ttl", "float", 0, "=", "Google results: seconds kept."),
    _("cosmosdbsql_database_name", "string", "celerydb", "=", "Cosmos DB results: the database."),
    _("cosmosdbsql_collection_name", "string", "celerycol", "=", "Cosmos DB results: the collection."),
    _("cosmosdbsql_consistency_level", "string", "Session", "=", "Cosmos DB results: consistency."),
    _("cosmosdbsql_max_retry_attempts", "int", 9, "=", "Cosmos DB results: attempts."),
    _("cosmosdbsql_max_retry_wait_time", "int", 30, "=", "Cosmos DB results: seconds between them."),
    _("elasticsearch_retry_on_timeout", "bool", None, "CELERY_=", "Elasticsearch results: retry a timeout."),
    _("elasticsearch_max_retries", "int", None, "CELERY_=", "Elasticsearch results: attempts."),
    _("elasticsearch_timeout", "float", None, "CELERY_=", "Elasticsearch results: seconds to wait."),
    _("elasticsearch_save_meta_as_text", "bool", True, "CELERY_=", "Elasticsearch results: metas as text."),
)

SECTIONS: dict[str, tuple[Setting, ...]] = {
    "Umbel's own": _UMBEL,
    "General": _GENERAL,
    "Broker": _BROKER,
    "Tasks": _TASK,
    "Worker": _WORKER,
    "Results": _RESULT,
    "Redis results": _REDIS,
    "Beat": _BEAT,
    "Events and remote control": _EVENT,
    "Signed messages": _SECURITY,
    "Other result stores": _STORES,
}
"""The rows under the headings of the documentation."""

ROWS: dict[str, Setting] = {row.name: row for rows in SECTIONS.values() for row in rows}
"""Every setting by its name."""

OLD_NAMES: dict[str, str] = {row.old_name: row.name for row in ROWS.values() if row.old_name}
"""Every old name, with the name it has now."""

CHANGED: dict[str, str] = {
    "task_acks_late": "Celery acknowledges before the task runs, so a crash loses it.",
    "task_reject_on_worker_lost": "Celery acknowledges the task of a lost worker, which loses it.",
    "redis_socket_timeout": "Celery waits for two minutes for a server that does not answer.",
}
"""The defaults that are not Celery's, and why."""
