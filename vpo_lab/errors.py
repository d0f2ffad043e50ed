"""The one error that users are meant to see."""


class LabError(Exception):
    """Tell a user in one clear line: what was wrong, where, what to do. The CLI prints it without a traceback."""
