"""Types that state a tensor's shape and dtype, as in `Float[Tensor, "rows length hidden"]`.

They are jaxtyping's if it is installed, as with the extra `test`: the tests check every call of a function annotated
with them. Otherwise they are plain tensors and cost nothing. Each axis has one name in the whole package, listed in
`docs/reference/sizes-and-names.md`. `...` stands for any axes, and a `#` before a name also allows a size of one.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import Shaped as Shaped
else:
    try:
        from jaxtyping import Bool, Float, Int, Shaped
    except ImportError:

        class _Unchecked:
            """Replaces jaxtyping's types by the tensor's own type, whatever its shape."""

            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = Shaped = _Unchecked
