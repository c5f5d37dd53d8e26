"""What an operator sees: metrics, traces and logs.

Used by others: `NoTrace`, `NoTracing`, `RequestObserver`, `RequestTrace`, `ServerMetrics`,
`Tracing`, `log_form`, `set_up_logging`, `tracing_of_environment`.
"""
