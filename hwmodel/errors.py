"""The one exception that means "the input is wrong", shared by every package."""


class InputError(ValueError):
    """Bad input: the message is one line that names the field, the value and what is allowed.

    The command line prints it without a traceback and exits with code 2.

    Args:
        field: Path of the field, as the user wrote it (``space.weight_bits[0]``, ``--budget``).
        value: The value that was given.
        allowed: What is allowed there, or how to get out of it.
    """

    def __init__(self, field: str, value: object, allowed: str) -> None:
        self.field = field
        self.value = value
        self.allowed = allowed
        super().__init__(" ".join(f"{field}: {value!r} is not allowed; {allowed}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, object, str]]:
        # The default would rebuild the exception from its message alone, across processes.
        return InputError, (self.field, self.value, self.allowed)
