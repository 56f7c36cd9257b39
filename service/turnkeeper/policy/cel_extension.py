"""Loads the evaluator of conditions without the command line of its package, which a server would load with it."""

import importlib.util
import sys
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cel.cel import Context, Program, compile, evaluate  # noqa: A004 - the library's name
else:

    def _extension() -> Any:
        """Returns the package's extension module. Raises ImportError if it is not installed."""
        name = "cel.cel"
        if name in sys.modules:
            return sys.modules[name]
        package = importlib.util.find_spec("cel")
        places = package.submodule_search_locations if package is not None else None
        spec = PathFinder.find_spec(name, places)
        if spec is None or spec.loader is None:
            raise ImportError("common-expression-language is not installed")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    _module = _extension()
    Context, Program, compile, evaluate = _module.Context, _module.Program, _module.compile, _module.evaluate  # noqa: A001

__all__ = ["Context", "Program", "compile", "evaluate"]
