"""The allocator keeps what products free, unless somebody has decided otherwise."""

import os
import subprocess
import sys

import pytest

from landscape.memory import VARIABLES, keep_freed_memory

ASK = "from landscape.memory import keep_freed_memory; print(keep_freed_memory())"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have other allocators")
def test_settings_of_the_user_stand():
    assert keep_freed_memory() == keep_freed_memory()
    environment = {**os.environ, VARIABLES[0]: "131072"}
    done = subprocess.run([sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
