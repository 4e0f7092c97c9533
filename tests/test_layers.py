"""What stands higher may import what stands lower, never the other way, and nothing in a circle."""

import ast
from pathlib import Path

import specrej

ROOT = Path(specrej.__file__).parent
LAYERS = [
    {
        "version",
        "errors",
        "memory",
        "registry",
        "options",
        "policy",
        "prompt",
        "candidate",
        "threads",
    },
    {"types", "sampling", "messages", "settings", "flops", "constraint"},
    {"files", "remote"},
    {"attention", "hub"},
    {"engines"},
    {"rewards"},
    {"search"},
    {"opening"},
    {"arguments"},
    {"api"},
    {"session"},
    {"server", "evaluation"},
    {"batch", "calibration"},
    {"cli", "ray", "__init__"},
    {"testing", "__main__"},
]
"""Rooms of the package from the ground up. Those of one layer do not know each other, but on the
ground."""
GROUND = 2
"""Up to this layer rooms may know each other."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("specrej", *(part for part in parts if part != "__init__")))


MODULES = {module_name(path): path for path in ROOT.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """Modules of specrej that a module imports, at its top, in its functions and for its types."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in MODULES}
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inside & MODULES.keys()) or {node.module}
    return found - {module}


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def test_every_room_has_its_layer() -> None:
    assert {room_of(module) for module in MODULES} == set(LEVEL)


def test_no_import_goes_up() -> None:
    wrong = []
    for module in sorted(MODULES):
        for imported in sorted(imports_of(module)):
            mine, theirs = LEVEL[room_of(module)], LEVEL[room_of(imported)]
            if (
                room_of(module) != room_of(imported)
                and theirs >= mine
                and max(mine, theirs) > GROUND
            ):
                wrong.append(f"{module} -> {imported}")
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {module: imports_of(module) for module in MODULES}
    while free := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in free}
    assert sorted(left) == []


def named_by(node: ast.stmt) -> str:
    """What a class or an alias of a type is called; "" of anything else."""
    match node:
        case ast.ClassDef(name=name):
            return name
        case ast.Assign(targets=[ast.Name(id=name)]) if name.isalnum() and not name.isupper():
            return name if name[0].isupper() else ""
    return ""


def test_a_type_has_a_name_of_its_own() -> None:
    """But for OpenAI's words, which the server's schemas take over."""
    found: dict[str, list[str]] = {}
    for module in sorted(
        MODULES.keys()
        - {"specrej.server.schema", "specrej.server.replies", "specrej.server.bodies"}
    ):
        for node in ast.parse(MODULES[module].read_text()).body:
            if (name := named_by(node)) and not name.startswith("_"):
                found.setdefault(name, []).append(module)
    assert {name: modules for name, modules in found.items() if len(modules) > 1} == {}
