"""The pages of the course: one for each exercise, from the same source as the file that a learner begins with.

`pages` makes them while the site is built; `NAMES` is what these pages, and the course's own, put in by
`{{ ... }}`.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from allformers.practice.checking import is_differentiable
from allformers.practice.course import SECTIONS, Entry, entries, find
from allformers.practice.exercise import label
from allformers.practice.report import CHECKS, DESCRIPTIONS
from allformers.practice.source import answer, code
from docs.engine.walk import code_html


def pages() -> dict[str, str]:
    """Return the Markdown of every exercise's page, by the page's path."""
    return {f"practice/{entry.name}.md": page(entry) for entry in entries()}


def page(entry: Entry) -> str:
    """Return the page of an exercise, in Markdown."""
    exercise = entry.load()
    is_hunt = exercise.bug is not None
    own = ".".join(re.findall(r"[A-Z]\w*|\w+$", exercise.part_of))
    solution = f'{{{{ exercise_code("{entry.name}", solved=True) }}}}'
    before = ", ".join(f"[{find(name).title}]({name}.md)" for name in exercise.prerequisites)
    properties = [f"- **{_capital(label(p))}.** {_on_one_line(inspect.getdoc(p))}" for p in exercise.properties]
    hints = zip(("A nudge", "A hint", "Almost the answer"), exercise.hints, strict=True)
    pieces = [
        "---\nhide:\n  - toc\n---",
        f"# {entry.title}",
        f"*Exercise {entry.number} of {len(entries())}: {entry.section}.*" + (f" *After {before}.*" if before else ""),
        f"{_capital(entry.teaches)}",
        _with_fences(entry.task),
        f"## {'Mend it' if is_hunt else 'Write it'}",
        f"```bash\nallformers practice start {entry.name}\nallformers practice check {entry.name}\n```",
        f"The first writes `practice/{entry.stem}.py`, with this task and the code below. The second checks it.",
        f'{{{{ exercise_code("{entry.name}") }}}}',
        "## What is checked",
        "Shapes and dtypes on several odd sizes, and then:",
        *(["\n".join(properties)] if properties else []),
        "At the end every number is compared with the reference's"
        + (", and every gradient." if is_differentiable(exercise) else "."),
        "## Hints",
        *(f'??? tip "{title}"\n    {hint}' for title, hint in hints),
        '??? success "The solution"\n'
        + textwrap.indent(f"```diff\n{answer(exercise)}```" if is_hunt else solution, "    "),
        f"The package's own is `{own}`, [explained step by step](../{exercise.page.replace('.html', '.md')}).",
    ]
    return "\n\n".join(pieces) + "\n"


def exercise_code(name: str, *, solved: bool = False) -> Markup:
    """Return the HTML of an exercise's starting file, or of its solution, with axes in colour."""
    text = code(find(name).load(), solved=solved)
    lines = Markup("\n".join(code_html(text)))
    told = f"the solution of {name}" if solved else f"what {name} begins with"
    return Markup(
        '<div class="walk-unit exercise"><pre tabindex="0" role="group" aria-label="{}"><code>{}\n</code></pre></div>'
    ).format(told, lines)


def course() -> Markup:
    """Return a list of all exercises in order, each a link to its page."""
    sections = Markup("")
    for title, names in SECTIONS.items():
        listed = [find(name) for name in names]
        items = Markup("").join(
            Markup('<li><a href="practice/{}.html">{}</a>: {}</li>').format(entry.name, entry.title, entry.teaches)
            for entry in listed
        )
        if listed:
            sections += Markup('<h3 id="{}">{}</h3><ol start="{}">{}</ol>').format(
                title.lower().replace(" ", "-"), title, listed[0].number, items
            )
    return Markup('<div class="course">{}</div>').format(sections)


def checks() -> Markup:
    """Return the checks in order, each with the property that it checks."""
    items = Markup("").join(
        Markup("<li><code>{}</code>: {}{}</li>").format(
            name, DESCRIPTIONS[name], " (a hint, and no failure)" if name == "named" else ""
        )
        for name in CHECKS
    )
    return Markup("<ol>{}</ol>").format(items)


NAMES: Mapping[str, Any] = {function.__name__: function for function in (checks, course, exercise_code)}
"""What an expression on a page may use beside what `docs.engine.facts` has."""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _on_one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _with_fences(task: str) -> str:
    """Return a task with its indented examples fenced, each with its language."""

    def fenced(found: re.Match[str]) -> str:
        text = inspect.cleandoc("\n" + found[0])
        language = "pycon" if text.startswith(">>>") else "python" if _is_python(text) else "text"
        return f"\n```{language}\n{text}\n```\n"

    return re.sub(r"\n(?:(?:    .*)?\n)*    .*\n", lambda found: f"\n{fenced(found)}\n", f"\n{task}\n").strip()


def _is_python(text: str) -> bool:
    try:
        return bool(ast.parse(text).body)
    except SyntaxError:
        return False
