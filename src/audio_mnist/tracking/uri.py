"""Addresses of tracking stores, without their passwords."""

import re


def without_password(text: str) -> str:
    """Mask the passwords of a tracking URI, or of a text that names some, before it is shown or logged.

    >>> without_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    """
    text = re.sub(r"(://[^/:\s]*):\S*@", r"\1:***@", text)  # name:password@
    text = re.sub(r"(https?://)[^/:@\s]+@", r"\1***@", text)  # token@
    return re.sub(r"(?i)((?:password|passwd|pwd|token|odbc_connect)=)[^&\s'\"]+", r"\1***", text)


def without_user(uri: str) -> str:
    """Drop the name and password of a server's address; a browser opens the rest.

    >>> without_user("https://me:secret@host:5000/mlflow")
    'https://host:5000/mlflow'
    """
    return re.sub(r"://[^/\s]*@", "://", uri)
