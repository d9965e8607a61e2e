"""The one error of the local stack; its message says what happened and what to do, and is shown without a traceback."""


class StackError(RuntimeError):
    """The local stack cannot do what was asked."""
