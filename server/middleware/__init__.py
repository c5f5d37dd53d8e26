"""What wraps every request, as plain ASGI callables.

Used by others: `Authenticate`, `BodyLimits`, `Observe`, `SecurityHeaders`.
"""
