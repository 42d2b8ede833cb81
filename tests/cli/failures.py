"""What a command that fails prints."""

from opq.cli import main


def failure(capsys, *arguments: str, status: int = 1) -> str:
    """The text on stderr of a command that ends with `status` and prints nothing else; an error has one line."""
    capsys.readouterr()
    assert main(list(arguments)) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert status == 2 or (printed.err.startswith("opq: error: ") and printed.err.count("\n") == 1)
    return printed.err
