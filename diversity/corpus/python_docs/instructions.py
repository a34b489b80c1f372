"""The instructions of `builtin:python-docs`: ways in which people ask for what a docstring says.

A form is offered only where the docstring can answer it: one that asks for parameters needs a section of parameters. Which of those
that are offered is taken is a hash of the object's qualified name, so that it never depends on what else is read.
"""

from __future__ import annotations

import re
from hashlib import blake2b

PACKAGE_NAMES = {
    "accelerate": "Accelerate",
    "deepspeed": "DeepSpeed",
    "huggingface_hub": "Hugging Face Hub",
    "matplotlib": "Matplotlib",
    "networkx": "NetworkX",
    "numpy": "NumPy",
    "peft": "PEFT",
    "pydantic": "Pydantic",
    "scipy": "SciPy",
    "sklearn": "scikit-learn",
    "sympy": "SymPy",
    "transformers": "Transformers",
}
LONGEST_SIGNATURE = 400

_PARAMETERS = re.compile(r"^(?:Parameters\n[-=]{3,}|(?:Args|Arguments|Parameters):|:param )", re.MULTILINE)
_RETURNS = re.compile(r"^(?:Returns?\n[-=]{3,}|(?:Returns?):|:returns?:)", re.MULTILINE)
_EXAMPLE = re.compile(r"^\s*>>> ", re.MULTILINE)
_RAISES = re.compile(r"^(?:Raises\n[-=]{3,}|Raises:|:raises )", re.MULTILINE)
_ATTRIBUTES = re.compile(r"^(?:Attributes\n[-=]{3,}|Attributes:)", re.MULTILINE)

# (needs, form). {path} is the public dotted name, {name} the object's own, {module} where it lives, {package} the library.
_CALLABLE = (
    ("", "What does `{path}` do?"),
    ("", "Explain the {kind} `{name}` of the {package} library."),
    ("", "Describe the purpose of the {kind} `{name}` in `{module}`."),
    ("", "I came across `{path}` in some code. What is it for?"),
    ("", "Give me the reference documentation of the {kind} `{path}`."),
    ("", "How do I use `{name}` from `{module}`?"),
    ("signature", "Document this {kind} from `{module}`:\n\n```python\n{signature}: ...\n```"),
    ("signature", "Write a docstring for the following Python {kind} of {package}.\n\n```python\n{signature}:\n```"),
    ("signature", "Here is the signature of a {kind} in `{module}`:\n\n{signature}\n\nWhat does it do?"),
    ("signature", "Explain what `{signature}` does in {package}."),
    ("parameters", "Which parameters does `{path}` take, and what do they mean?"),
    ("parameters", "Explain the arguments of the {kind} `{name}` in {package}."),
    ("parameters signature", "Describe every parameter of this {kind} from `{module}`:\n\n```python\n{signature}\n```"),
    ("returns", "What does `{path}` return?"),
    ("returns signature", "Given `{signature}` in `{module}`, say what it computes and what comes back."),
    ("example", "Show me how `{path}` is used, with an example."),
    ("example", "Explain `{name}` from {package} and give a short example session."),
    ("raises", "What does `{path}` do, and which errors can it raise?"),
)
_METHOD = (
    ("", "What does calling `{method}` on an instance of `{owner}` do?"),
    ("", "In {package}, what is the method `{method}` of the class `{owner}` good for?"),
    ("signature", "The class `{owner}` in `{module}` has this method:\n\n```python\n{signature}\n```\n\nDocument it."),
)
_PROPERTY = (
    ("", "What is the property `{path}`?"),
    ("", "What does the attribute `{method}` of a `{owner}` hold?"),
    ("", "Describe the property `{method}` of the class `{owner}` in {package}."),
    ("", "What do I get when I read `{name}` in {package}?"),
    ("", "Document the property `{method}` of `{owner}` in `{module}`."),
    ("signature", "Write a docstring for this property of `{owner}` in `{module}`:\n\n```python\n@property\n{signature}:\n```"),
)
_CLASS = (
    ("", "What is the class `{path}`?"),
    ("", "What does an instance of `{name}` represent in {package}?"),
    ("", "When would I use the class `{name}` from `{module}`?"),
    ("", "Describe the class `{name}` of the {package} library."),
    ("", "Give me the reference documentation of the class `{path}`."),
    ("signature", "Write the docstring of this class from `{module}`:\n\n```python\n{signature}:\n```"),
    ("signature", "What is `{signature}` in {package} for?"),
    ("parameters", "Which parameters does `{path}` take when it is created?"),
    ("parameters", "How do I construct a `{name}` in {package}? Explain its parameters."),
    ("attributes", "Explain the class `{path}` and its attributes."),
    ("example", "Explain `{name}` from {package} with an example."),
)
_MODULE = (
    ("", "What is the module `{path}` for?"),
    ("", "Give an overview of the Python module `{path}`."),
    ("", "Summarise what `{path}` contains."),
    ("", "Write the module docstring of `{path}`."),
    ("", "I am about to read the source file of `{path}` in {package}. What should I know first?"),
    ("", "What would I find in `{path}`?"),
)
FORMS = {"function": _CALLABLE, "method": _CALLABLE + _METHOD, "property": _PROPERTY, "class": _CLASS, "module": _MODULE}


def instruction_of(qualified: str, module: str, name: str, kind: str, signature: str, docstring: str) -> str:
    """Return the instruction that the docstring answers.

    Args:
        qualified: the module's name and the object's; its hash chooses the form.
        module: dotted name of the module.
        name: the object's name inside it, `Class.method` for methods, "" for a module.
        kind: `module`, `class`, `function`, `method` or `property`.
        signature: the head of the definition in one line.
        docstring: the response.
    """
    has = {need for need, pattern in _SECTIONS.items() if pattern.search(docstring)}
    if signature and len(signature) <= LONGEST_SIGNATURE:
        has.add("signature")
    offered = [form for needs, form in FORMS[kind] if has.issuperset(needs.split())]
    choice = int.from_bytes(blake2b(qualified.encode(), digest_size=8, person=b"form").digest(), "big") % len(offered)
    public = ".".join(part for part in module.split(".") if not part.startswith("_"))
    owner, _, method = name.rpartition(".")
    package = module.partition(".")[0]
    return offered[choice].format(
        path=f"{public}.{name}" if name else public,
        name=name,
        owner=owner,
        method=method,
        module=public,
        kind=kind,
        package=PACKAGE_NAMES.get(package, package),
        signature=signature,
    )


_SECTIONS = {"parameters": _PARAMETERS, "returns": _RETURNS, "example": _EXAMPLE, "raises": _RAISES, "attributes": _ATTRIBUTES}
