"""What monitoring systems read: Prometheus metrics, and numbers for autoscalers.

::

    worker, --health-port ──/metrics──> page.py: what its supervisor knows, in the text format
    umbel metrics serve   ──/metrics──> exporter.py: events ─> tally.py ─┐
                                                     broker, workers ─> survey.py ─┴> sets.py: names and labels
                          ──/api/v1/scale──> scale.py: for KEDA

Everything is counted in the process that serves it, or when somebody asks; tasks and clients do nothing for it beyond
the events that they send anyway. Only ``sets.py`` and ``exporter.py`` need ``prometheus_client``.
"""
