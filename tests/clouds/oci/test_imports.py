"""What is imported, and when: neither Oracle's SDK, nor anything without cryptography."""

from __future__ import annotations

import subprocess
import sys


def run(script: str) -> str:
    """Run a script in a new interpreter; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def test_the_sdk_is_not_imported() -> None:
    """Not to sign, and not to look up a region that only its data file may have."""
    script = (
        "import sys\n"
        "from bootstream.clouds.oci import find_region, open_principal, sign\n"
        "find_region('xx-unknown-1')\n"
        "print([name for name in sys.modules if name.split('.')[0] == 'oci'])\n"
    )
    assert run(script) == "[]"


def test_without_cryptography_the_extra_is_named() -> None:
    """The error is of the tree and says what to install."""
    script = (
        "import sys\n"
        "sys.modules['cryptography'] = None\n"
        "from bootstream.errors import InvalidInput\n"
        "try:\n"
        "    import bootstream.clouds.oci\n"
        "except InvalidInput as error:\n"
        "    print(error.remedy)\n"
    )
    assert run(script) == "pip install 'bootstream[oci]'"
