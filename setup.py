"""Builds the native tier where there is a C compiler; everything else is in pyproject.toml."""

import os
import sys

from setuptools import Extension, setup

# The buffer protocol, which the extension takes arrays by, is in the stable ABI since Python 3.11.
STABLE_ABI = sys.version_info >= (3, 11)

native = Extension(
    "spinup_plugins.engine._native",
    sources=["spinup_plugins/engine/native/native.c"],
    depends=["spinup_plugins/engine/native/kernels.h"],
    define_macros=[("Py_LIMITED_API", "0x030B0000")] if STABLE_ABI else [],
    py_limited_api=STABLE_ABI,
    # Instructions are chosen at run time; nothing here depends on the machine that builds.
    extra_compile_args=[] if os.name == "nt" else ["-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math"],
    libraries=[] if os.name == "nt" else ["m", "pthread"],
    optional=True,
)

setup(
    ext_modules=[] if os.environ.get("SPINUP_NO_NATIVE") else [native],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if STABLE_ABI else {},
)
