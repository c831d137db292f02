"""The command line as a process: what it may meet from outside, and the codes that it ends with."""

import os
import sys
from typing import Any

from sim.cli import interrupt, streams
from sim.cli.output import is_compiling
from sim.code.garbage import leave_all, look_seldom

REFUSED = 2  # what was asked cannot be


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2.

    Ctrl-C is one line too, and exit code 130 (`interrupt`). What cannot be printed keeps no file
    from being written (`streams`).
    """
    look_seldom()
    with streams.guarded() as printed:
        code = _code() or printed.code()
        if is_compiling():  # in C++, which Python's own end would cut off in a crash
            printed.flush()
            sys.stderr.flush()
            os._exit(code)
    if "triton" not in sys.modules:  # its bindings report what is left as leaks
        leave_all()
    sys.exit(code)


def _code() -> int:
    """Run a command; its exit code."""
    with interrupt.watched():
        import typer

        from sim.cli.commands import app
        from sim.inputs.files import InputError

        usage_error: Any = typer.BadParameter.__bases__[0]  # click's, or typer's copy of it
        try:
            code: int = app(standalone_mode=False) or 0
        except typer.Abort:  # what older ones make of Ctrl-C
            raise KeyboardInterrupt from None
        except usage_error as error:
            if type(error).__name__ == "NoArgsIsHelpError":  # which has printed the help
                return REFUSED
            text = " ".join(error.format_message().split()).rstrip(".")
            text = text.replace("Value error, ", "")  # pydantic's, by which typer tells choices
            return _refused(InputError(f"{text}; --help says what is accepted"))
        except InputError as error:
            return _refused(error)
        except OSError as error:  # of this computer, such as a disk that fails
            where = f"{error.filename}: " if error.filename else ""
            return _refused(InputError(f"{where}{error.strerror or error}"))
        except MemoryError as error:
            reason = f": {error}" if str(error) else ""
            return _refused(InputError(f"this computer's memory is full{reason}"))
        if code == interrupt.CODE:  # what typer makes of it
            raise KeyboardInterrupt
        return code


def _refused(error: Exception) -> int:
    print(f"attnsim: {error}", file=sys.stderr)
    return REFUSED


if __name__ == "__main__":
    main()
