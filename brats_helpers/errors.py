"""The one error that this package raises for input, files and settings.

Its message is written to a person: what is wrong, in which file of which patient, and what to do.
"""


class BratsError(Exception):
    """A problem that the reader of the message can solve; anything else that is raised is our bug."""
