"""The checker of shape annotations."""

from typing import Any

from beartype import beartype


def check_shapes(function: Any) -> Any:
    """Return the function with its jaxtyping annotations checked, and no others: builders must see wrong values."""
    function.__annotations__ = {
        name: hint for name, hint in function.__annotations__.items() if "jaxtyping" in getattr(hint, "__module__", "")
    }
    return beartype(function)
