"""List the messages for a user's mistakes: python docs/errors.py writes the table of docs/errors.md.

The messages are read from the source: every call of `require`, `SettingError` and `UserError`. What a message fills in
stands in capitals.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "metarun"
PAGE = ROOT / "docs/errors.md"
MARKERS = "<!-- messages: made by docs/errors.py -->", "<!-- end of messages -->"
GROUPS = {"algorithms": "algo", "analyses": "analysis", "data": "data", "models": "model", "regularizers": "reg.NAME"}
TITLES = {
    "algorithms": "Algorithms",
    "analyses": "Analyses",
    "cli": "The command line",
    "compute": "Devices and processes",
    "config": "Settings",
    "data": "Data",
    "jobs": "Jobs",
    "models": "Networks",
    "regularizers": "Regularizers",
    "report": "Reports",
    "storage": "Files",
    "training": "Training",
}


def text_of(node: ast.AST, names: dict[str, ast.AST]) -> str:
    """The text of an expression: strings as they are, values by the last of their names in capitals."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part, names) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, names)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, names) + text_of(node.right, names)
    if isinstance(node, ast.IfExp):
        return f"{text_of(node.body, names)} | {text_of(node.orelse, names)}"
    if isinstance(node, (ast.Tuple, ast.List)):
        return ", ".join(text_of(part, names) for part in node.elts)
    if isinstance(node, ast.Starred):
        return text_of(node.value, names)
    if isinstance(node, ast.Name):
        known = names.get(node.id)
        return text_of(known, {k: v for k, v in names.items() if k != node.id}) if known else node.id.upper()
    if isinstance(node, ast.Attribute):
        return node.attr.upper()
    if isinstance(node, ast.Subscript):
        return text_of(node.slice, {}).upper() if isinstance(node.slice, ast.Constant) else text_of(node.value, {})
    if isinstance(node, ast.Call):
        return text_of(node.args[0] if node.args else node.func, names)
    return "VALUE"


def assignments(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str, ast.AST]]:
    """Line, name and value of the texts and lists of texts that are assigned."""
    texts = (ast.Constant, ast.JoinedStr, ast.BinOp, ast.Tuple)
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, texts):
            yield node.lineno, node.targets[0].id, node.value


def messages_in(path: Path) -> list[str]:
    """The messages of a file."""
    room = path.relative_to(PACKAGE).parts[0]
    prefix = f"{GROUPS[room]}." if room in GROUPS else ""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        assigned = [*assignments(tree.body), *assignments(ast.walk(function))]
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
                continue
            names = {name: value for line, name, value in assigned if line < call.lineno}
            arguments = call.args[1:] if call.func.id == "require" else call.args
            if call.func.id in ("require", "SettingError") and len(arguments) == 3:
                key, expected = (text_of(arguments[i], names) for i in (0, 2))
                key = prefix + key if "." not in key and key.islower() else key
                found.append(f"`{key}=...`: {expected}")
            elif call.func.id == "UserError" and arguments:
                found.append(text_of(arguments[0], names))
    return [" ".join(message.split()).replace("|", r"\|") for message in found if len(message) > 20]


def table() -> str:
    """A list of messages for each room."""
    parts = []
    for room, title in sorted(TITLES.items(), key=lambda pair: pair[1]):
        found = sorted({m for path in sorted((PACKAGE / room).rglob("*.py")) for m in messages_in(path)})
        parts += [f"### {title}", "", *(f"* {message}" for message in found), ""]
    return "\n".join(parts)


if __name__ == "__main__":
    start, end = MARKERS
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(start)[0], page.partition(end)[2]
    PAGE.write_text(f"{before}{start}\n{table()}{end}{after}", encoding="utf-8")
