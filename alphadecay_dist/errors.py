"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what, found, expected and what to do.

    Commands print it without a traceback and exit with code 2.
    """
