"""The one exception whose text is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user gave is wrong: one sentence naming the file, key or layer, the fault and what is allowed.

    Stages print it without a traceback and exit with status 2.
    """
