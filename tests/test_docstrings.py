"""What docstrings show and name exists: imports and calls of examples, parameters, exceptions,
dotted names.

All by `ast`, so that engines whose libraries are not installed are read as well.
"""

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator
from functools import cache
from typing import Any

from test_layers import MODULES, ROOT

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


class Module:
    """A module's names: what it defines, and what it imports from other modules of specrej."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        self.definitions: dict[str, Definition] = {}
        self.imports: dict[str, str] = {}
        self.others: set[str] = set()
        for node in ast.walk(
            self.tree
        ):  # names for types, and those imported in a function, as well
            if isinstance(node, ast.ImportFrom):
                self.imports |= {
                    alias.asname or alias.name: f"{node.module}.{alias.name}"
                    for alias in node.names
                }
            elif isinstance(node, ast.Import):
                self.imports |= {
                    (alias.asname or alias.name).split(".")[0]: alias.name for alias in node.names
                }
        for node in self.tree.body:
            if isinstance(node, Definition):
                self.definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.others |= {
                    name.id
                    for target in targets
                    for name in ast.walk(target)
                    if isinstance(name, ast.Name)
                }

    def find(self, name: str) -> Definition | str | None:
        """A definition, "known" for what is no function or class of specrej, and None for what
        is not there."""
        if name in self.definitions:
            return self.definitions[name]
        if name in self.imports:
            return (
                resolve(self.imports[name]) if self.imports[name].startswith("specrej") else "known"
            )
        return "known" if name in self.others else None


@cache
def module(name: str) -> Module:
    return Module(name)


def resolve(dotted: str) -> Definition | str | None:
    """What a name such as `specrej.types.Policy.when` stands for, as `Module.find` says it."""
    parts = dotted.split(".")
    for end in range(len(parts), 0, -1):
        if (name := ".".join(parts[:end])) in MODULES:
            found: Definition | str | None = (
                "known" if end == len(parts) else module(name).find(parts[end])
            )
            for member in parts[end + 1 :]:
                found = members(found).get(member) if isinstance(found, ast.ClassDef) else found
            return found
    return None


def members(owner: ast.ClassDef) -> dict[str, Definition | str]:
    """Methods, fields and attributes of a class, and those of its bases in specrej."""
    found: dict[str, Definition | str] = {}
    for base in owner.bases:
        for one in CLASSES.get(ast.unparse(base).split("[")[0], []):
            found |= members(one)
    for node in ast.walk(owner):
        if (
            isinstance(node, ast.Attribute)
            and ast.unparse(node.value) == "self"
            and isinstance(node.ctx, ast.Store)
        ):
            found[node.attr] = "known"
    for node in owner.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {
                name.id: "known"
                for target in targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name)
            }
    return found


CLASSES: dict[str, list[ast.ClassDef]] = {}
for _name in MODULES:
    for _definition in module(_name).definitions.values():
        if isinstance(_definition, ast.ClassDef):
            CLASSES.setdefault(_definition.name, []).append(_definition)


def parameters(definition: Definition) -> tuple[list[str], set[str], bool, bool]:
    """Positional names, all names, and whether any number of positional ones and of keywords is
    taken."""
    if isinstance(definition, ast.ClassDef):
        made = members(definition).get("__init__")
        if not isinstance(made, ast.FunctionDef):
            fields = [
                node.target.id
                for one in (
                    *(
                        base
                        for name in definition.bases
                        for base in CLASSES.get(ast.unparse(name), [])
                    ),
                    definition,
                )
                for node in one.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            ]
            return fields, set(fields), False, False
        definition = made
    given = definition.args
    positional = [
        one.arg for one in (*given.posonlyargs, *given.args) if one.arg not in ("self", "cls")
    ]
    every = {*positional, *(one.arg for one in given.kwonlyargs)}
    unpacked = re.search(r"Unpack\[(\w+)\]", ast.unparse(given))
    options = (
        {name for one in CLASSES.get(unpacked[1], []) for name in members(one)}
        if unpacked
        else set()
    )
    return (
        positional,
        every | options,
        given.vararg is not None,
        given.kwarg is not None and not options,
    )


def docstrings() -> Iterator[tuple[Module, ast.AST, str, str]]:
    """Module, what is described, where it is, and the text; also of the texts behind fields."""
    for name in MODULES:
        read = module(name)
        for node in ast.walk(read.tree):
            if isinstance(node, Definition | ast.Module) and (text := ast.get_docstring(node)):
                line = node.body[0].lineno
                yield read, node, f"{MODULES[name].relative_to(ROOT)}:{line}", text


def examples(text: str) -> Iterator[str]:
    """Indented blocks of a docstring, outside of sections such as Args, and paragraphs that are
    code.

    Where all that follows the first line is an example, the formatter takes its indentation away.
    """
    plain = re.split(r"^(?:Args|Raises|Returns|Attributes|Yields):$", text, flags=re.MULTILINE)[0]
    for block in re.findall(r"(?:^(?: {4}.*)?\n)+", plain + "\n", re.MULTILINE):
        whole = textwrap.dedent(block).strip("\n")
        yield from [whole] if parsed(whole) else re.split(r"\n\s*\n", whole)
    for paragraph in re.split(r"\n\s*\n", plain)[1:]:
        if not paragraph.startswith(" ") and parsed(paragraph) is not None:
            yield paragraph


def section(text: str, name: str) -> list[str]:
    """Names that a section has entries for."""
    found = re.search(rf"^{name}:\n((?:    .*\n|\n)+)", text + "\n", re.MULTILINE)
    entries = re.findall(r"^    ([\w*]+(?:, [\w*]+)*): ", found[1], re.MULTILINE) if found else []
    return [name.lstrip("*") for entry in entries for name in entry.split(", ")]


def assigned(block: ast.Module) -> set[str]:
    """Names that an example gives itself."""
    own = {
        node.id
        for node in ast.walk(block)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    own |= {node.name for node in ast.walk(block) if isinstance(node, Definition)}
    return own | {
        one.arg
        for node in ast.walk(block)
        if isinstance(node, ast.Lambda)
        for one in node.args.args
    }


def called(
    read: Module, node: ast.AST, block: ast.Module, call: ast.Call
) -> list[Definition | str]:
    """What a call in an example may mean: a name of the module or of the package, or a method
    that has this name."""
    if isinstance(call.func, ast.Name):
        name = call.func.id
        if name in assigned(block) or hasattr(builtins, name):
            return ["known"]
        imported = {
            alias.asname or alias.name: f"{one.module}.{alias.name}"
            for one in ast.walk(block)
            if isinstance(one, ast.ImportFrom)
            for alias in one.names
        }
        found = (
            [resolve(imported[name])]
            if name in imported
            else [read.find(name), resolve(f"specrej.{name}")]
        )
        if isinstance(node, ast.ClassDef):
            found.append(members(node).get(name))
        if not any(found):  # of another module, which the example leaves to the reader
            found += [module(other).definitions.get(name) for other in MODULES]
        return ["known"] if name in FOREIGN else [one for one in found if one is not None]
    dotted = ast.unparse(call.func)
    if dotted.startswith("specrej."):
        return [one for one in [resolve(dotted)] if one is not None]
    owner, _, name = dotted.rpartition(".")
    if isinstance(read.find(owner), ast.ClassDef):
        return [one for one in [members(read.find(owner)).get(name)] if one is not None]  # type: ignore[arg-type]
    if read.find(owner) == "known" or owner in FOREIGN:
        return ["known"]
    near = [
        one
        for one in map(read.find, (*read.definitions, *read.imports))
        if isinstance(one, ast.ClassDef)
    ]
    every = [one for classes in CLASSES.values() for one in classes]
    for classes in (near, every):
        if found := [members(one)[name] for one in classes if name in members(one)]:
            return found
    return ["known"] if isinstance(call.func.value, ast.Constant) or hasattr(list, name) else []  # type: ignore[attr-defined]


FOREIGN = {
    "ray",
    "ray.data",
    "ds",
    "app",
    "uvicorn",
    "logits",
    "dataclass",
    "MyEngine",
    "MyReward",
    "make_brevity",
}
"""Names in examples that are of other libraries, or the reader's."""


NO_MODULES = {"specrej.rewards", "specrej.engines", "specrej.algorithms", "specrej.policies"}
NO_MODULES |= {"specrej.extracts"}
NO_MODULES |= {"specrej.num_answers", "specrej.n", "specrej.progress", "specrej.deadline_s"}
NO_MODULES |= {"specrej.regex", "specrej.grammar", "specrej.json_schema"}
"""Groups of entry points, and fields of requests and answers."""


def takes(definition: Definition | str, call: ast.Call) -> bool:
    if isinstance(definition, str):
        return True
    positional, every, any_positional, any_keyword = parameters(definition)
    given = [
        one for one in call.args if not isinstance(one, ast.Starred) and ast.unparse(one) != "..."
    ]
    named = {one.arg for one in call.keywords if one.arg is not None}
    return (any_positional or len(given) <= len(positional)) and (any_keyword or named <= every)


def parsed(block: str) -> ast.Module | None:
    try:
        flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        read: ast.Module = compile(block, "an example", "exec", flags)
        return read
    except SyntaxError:
        return None


def test_examples_call_what_exists_as_it_is_called() -> None:
    wrong, num_calls = [], 0
    for read, node, where, text in docstrings():
        for block in filter(None, map(parsed, examples(text))):
            for call in (one for one in ast.walk(block) if isinstance(one, ast.Call)):
                num_calls += 1
                meanings = called(read, node, block, call)
                if not any(takes(one, call) for one in meanings):
                    wrong.append(
                        f"{where}: {ast.unparse(call)}" + ("" if meanings else " (unknown)")
                    )
    assert wrong == []
    assert num_calls > 50


def test_examples_import_what_exists() -> None:
    wrong = []
    for _, _, where, text in docstrings():
        for block in filter(None, map(parsed, examples(text))):
            for node in ast.walk(block):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("specrej"):
                    dotted = [f"{node.module}.{alias.name}" for alias in node.names]
                    wrong += [f"{where}: {name}" for name in dotted if resolve(name) is None]
    assert wrong == []


def test_code_is_whole() -> None:
    """Examples can be read: a formatter that fills lines, or takes indentation away, spoils
    them."""
    wrong = []
    for _, _, where, text in docstrings():
        for paragraph in re.split(r"\n\s*\n", text):
            if re.match(
                r"(class|def|for|with|async) .*:\s*(#.*)?$|@\w", paragraph, re.MULTILINE
            ) and not parsed(paragraph):
                wrong.append(where)
        for block in examples(text):
            if (
                re.search(r"^(\w+(, \w+)* = )?[\w.]+\(.*\)\s*(#.*)?$", block, re.MULTILINE)
                and parsed(block) is None
            ):
                wrong.append(where)
    assert wrong == []


def test_dotted_names_exist() -> None:
    wrong = []
    documents = [*(ROOT.parents[1] / "docs").rglob("*.md"), ROOT.parents[1] / "README.md"]
    for path in [*MODULES.values(), *documents]:
        for dotted in re.findall(r"`(specrej(?:\.\w+)+)", path.read_text(encoding="utf-8")):
            if resolve(dotted) is None and dotted not in NO_MODULES:
                wrong.append(f"{path.name}: {dotted}")
    assert wrong == []


def test_names_in_backticks_exist() -> None:
    """Of `name(...)` and `Class.name` in a docstring."""
    wrong = []
    for read, node, where, text in docstrings():
        for quoted in re.findall(r"`([^`\n]+)`", text):
            block = parsed(quoted)
            if block and len(block.body) == 1 and isinstance(block.body[0], ast.Expr):
                value = block.body[0].value
                if isinstance(value, ast.Call):
                    meanings = called(read, node, block, value)
                    if not any(takes(one, value) for one in meanings):
                        wrong.append(f"{where}: {quoted}")
                elif isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
                    owner = read.find(value.value.id) or resolve(f"specrej.{value.value.id}")
                    if value.value.id in CLASSES:
                        owner = CLASSES[value.value.id][0]
                    is_module = f"specrej.{value.value.id}" in MODULES
                    is_wrong = isinstance(owner, ast.ClassDef) and value.attr not in members(owner)
                    if is_wrong or (is_module and resolve(f"specrej.{quoted}") is None):
                        wrong.append(f"{where}: {quoted}")
    assert wrong == []


def test_parameters_are_those_of_the_signature() -> None:
    wrong = []
    for _, node, where, text in docstrings():
        given = section(text, "Args")
        if not given:
            continue
        assert isinstance(node, Definition), where
        expected = parameters(node)[1]
        made = members(node).get("__init__") if isinstance(node, ast.ClassDef) else node
        if isinstance(made, ast.FunctionDef) and made.args.kwarg:
            expected = {
                one.arg for one in (*made.args.args, *made.args.kwonlyargs, made.args.kwarg)
            } - {"self"}
        if set(given) != expected:
            wrong.append(f"{where}: {sorted(set(given) ^ expected)}")
    assert wrong == []


def test_what_is_raised_is_an_exception() -> None:
    wrong = []
    for read, _, where, text in docstrings():
        for name in section(text, "Raises"):
            known: Any = getattr(builtins, name, None) or read.find(name) or CLASSES.get(name)
            if known is None:
                wrong.append(f"{where}: {name}")
    assert wrong == []
