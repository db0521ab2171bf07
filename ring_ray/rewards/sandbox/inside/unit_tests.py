"""Unit tests and the submission that they test, in two processes with two users: no test shares memory with it.

In the tests a name of the submission stands for what is there. Names of the standard library are the submission's only
where the tests use them as nobody uses a module.
"""

import ast
import builtins
import importlib
import importlib.util
import inspect
import socket
import sys
import unittest
from types import ModuleType

from ring_ray.rewards.sandbox.inside.remote import SUBMISSION, TestsPeer, UnsupportedError

PASSED = b"passed"
UNSUPPORTED_EXIT = 77  # not the submission's fault
_SOLUTION = ("solution", "main")  # modules that stand for the submission, for tests that import it


def test(connection: socket.socket, source: bytes) -> None:
    """In the tests' process: statements run as they stand, then ``test_*`` functions and ``TestCase`` classes.

    Raises what a failing test raises. Ends the process with `UNSUPPORTED_EXIT` for tests that can't be run this way.
    """
    try:
        tests = _read(source)  # before the submission has said anything: what is wrong with the tests is not its fault
        module = _module(TestsPeer(connection), tests)
        exec(compile(tests, "tests.py", "exec", dont_inherit=True), vars(module))  # the tests come with the data
        _run(list(vars(module).items()))
    except UnsupportedError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(UNSUPPORTED_EXIT) from error


def _read(source: bytes) -> ast.Module:
    try:
        tests = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise UnsupportedError(f"the tests are no Python: {error}") from error
    for node in ast.walk(tests):
        for root in _imported(node):
            if root not in _SOLUTION and importlib.util.find_spec(root) is None:
                raise UnsupportedError(f"the tests import {root}: there is only the standard library")
        if name := _replaced(node):
            raise UnsupportedError(f"the tests use {name}, which replaces nothing in the submission's process")
    if not any(map(_is_run, tests.body)):
        raise UnsupportedError("nothing in the tests is ever run")
    return tests


def _imported(node: ast.AST) -> list[str]:
    """Modules, without their packages' parts."""
    match node:
        case ast.Import(names=names):
            return [alias.name.partition(".")[0] for alias in names]
        case ast.ImportFrom(module=str(name)):
            return [name.partition(".")[0]]
    return []


def _replaced(node: ast.AST) -> str | None:
    """By what the tests would see or change how the submission talks to the outside."""
    match node:
        case ast.alias(name="patch" | "redirect_stdout" | "redirect_stderr" as name):
            return name
        case ast.Attribute(value=ast.Name(id="mock") | ast.Attribute(attr="mock"), attr="patch" as name):
            return name
        case ast.Attribute(value=ast.Name(id="contextlib"), attr="redirect_stdout" | "redirect_stderr" as name):
            return name
        case ast.Attribute(value=ast.Name(id="sys"), attr="stdin" | "stdout" as name, ctx=ast.Store()):
            return name
    return None


def _is_run(statement: ast.stmt) -> bool:
    """Whether it may test anything, by itself or by its name; a class may be a TestCase."""
    match statement:
        case ast.FunctionDef(name=name):
            return name.startswith("test")
        case ast.ClassDef(bases=bases):
            return bool(bases)
        case ast.Expr(value=ast.Constant()):
            return False
    return not isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign | ast.AnnAssign | ast.AsyncFunctionDef)


def _module(peer: TestsPeer, tests: ast.Module) -> ModuleType:
    """Where the tests run: with the names of the submission."""
    mentioned = {node.id for node in ast.walk(tests) if isinstance(node, ast.Name)}
    meant = _names_of_the_submission(tests)
    solution, module = ModuleType("solution"), ModuleType("__main__")
    for name, ancestry in peer.ask(SUBMISSION, "names"):
        if ancestry:
            vars(solution)[name] = peer.exception_kind(ancestry)
        elif name not in sys.stdlib_module_names or name in meant:
            vars(solution)[name] = peer.ask(SUBMISSION, "get", name)
        elif name in mentioned:
            vars(solution)[name] = importlib.import_module(name)
    # `import *` would replace what the tests have imported from elsewhere; the other names they have already.
    vars(solution)["__all__"] = []
    sys.modules.update(dict.fromkeys(_SOLUTION, solution), __main__=module, __tests__=module)
    vars(module).update(
        {name: value for name, value in vars(solution).items() if not hasattr(builtins, name)},
        __name__="__tests__",
        __builtins__=builtins,
    )
    return module


def _names_of_the_submission(tests: ast.Module) -> set[str]:
    """Those that can't be a module's, even where they are called as one: by how the tests use them."""
    names = set[str]()
    for node in ast.walk(tests):
        match node:
            case ast.Call(func=ast.Name(id=name)):
                names.add(name)
            case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _SOLUTION:
                names.add(name)
            case ast.ImportFrom(module=str(module), names=aliases) if module in _SOLUTION:
                names.update(alias.name for alias in aliases)
    return names


def _run(defined: list[tuple[str, object]]) -> None:
    """The tests in ``defined``: nothing of the submission's is a function or a class in this process."""
    for name, value in defined:
        if name.startswith("test") and inspect.isfunction(value):
            if inspect.iscoroutinefunction(value) or inspect.isgeneratorfunction(value):
                raise UnsupportedError(f"{name} does nothing when it is called: it may not be async, nor yield")
            if inspect.signature(value).parameters:
                raise UnsupportedError(f"{name} has parameters: there is nobody to give them")
            value()
        elif isinstance(value, type) and issubclass(value, unittest.TestCase):
            try:
                unittest.defaultTestLoader.loadTestsFromTestCase(value).debug()  # raises what a test raises
            except unittest.SkipTest as error:
                raise UnsupportedError(f"{name} skips a test: {error}") from error
