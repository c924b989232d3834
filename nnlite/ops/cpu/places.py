"""Which pixel of a window is the largest: comparisons of vectors (simd.py), and vectors of bytes for the places.

LLVM does not vectorise loops over so many short rows, some of bytes, some of floats. A `Places` holds a byte for each
lane of a vector, a `Mask` a bit.

    get(array, i, n), put(array, i, v, n)                   the first n lanes of a vector of array, from array[i] on
    get_places(array, i, like, n), put_places(array, i, p, n)   the same for bytes; like: a vector with as many lanes
    place(k, like)         k in every lane
    wins(a, b)             where a > b, or a is NaN and b is not
    choose(mask, a, b)     a where the mask is set, else b; two vectors or two Places
    only(p, k, v)          v where p is k, else 0
"""

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from .simd import VectorType, _call, element, everywhere, first_lanes, llvm_type, load, load_some, store, store_some

BYTE = ir.IntType(8)


class Lanes(types.Type):
    """One integer of `bits` for each lane."""

    def __init__(self, bits, lanes):
        self.bits, self.lanes = bits, lanes
        super().__init__(name=f"Lanes({bits}, {lanes})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(ir.IntType(kind.bits), kind.lanes))


@njit(inline="always")
def get(array, i, n):
    return load(array, i) if n * array.itemsize == 64 else load_some(array, i, n)


@njit(inline="always")
def put(array, i, v, n):
    if n * array.itemsize == 64:
        store(array, i, v)
    else:
        store_some(array, i, v, n)


def _bytes_at(context, builder, signature, args, kind):
    place = element(context, builder, signature.args[0], args[0], args[1])
    return builder.bitcast(place, ir.PointerType(kind))


@intrinsic
def get_places(typing, array, i, like, n):
    def build(context, builder, signature, args):
        kind = ir.VectorType(BYTE, like.lanes)
        return _call(builder, f"llvm.masked.load.v{like.lanes}i8.p0v{like.lanes}i8", kind,
                     [_bytes_at(context, builder, signature, args, kind), ir.Constant(ir.IntType(32), 1),
                      first_lanes(builder, like.lanes, args[3]), ir.Constant(kind, None)])
    return Lanes(8, like.lanes)(array, types.intp, like, types.intp), build


@intrinsic
def put_places(typing, array, i, p, n):
    def build(context, builder, signature, args):
        kind = ir.VectorType(BYTE, p.lanes)
        _call(builder, f"llvm.masked.store.v{p.lanes}i8.p0v{p.lanes}i8", ir.VoidType(),
              [args[2], _bytes_at(context, builder, signature, args, kind), ir.Constant(ir.IntType(32), 1),
               first_lanes(builder, p.lanes, args[3])])
        return context.get_dummy_value()
    return types.none(array, types.intp, p, types.intp), build


@intrinsic
def place(typing, k, like):
    def build(context, builder, signature, args):
        return everywhere(builder, context.cast(builder, args[0], signature.args[0], types.uint8), like.lanes)
    return Lanes(8, like.lanes)(k, like), build


@intrinsic
def wins(typing, a, b):
    def build(context, builder, signature, args):
        nan, number = builder.fcmp_unordered("uno", args[0], args[0]), builder.fcmp_ordered("ord", args[1], args[1])
        return builder.or_(builder.fcmp_ordered(">", *args), builder.and_(nan, number))
    return Lanes(1, a.lanes)(a, b), build


@intrinsic
def choose(typing, mask, a, b):
    def build(context, builder, signature, args):
        return builder.select(*args)
    return a(mask, a, b), build


@intrinsic
def only(typing, p, k, v):
    def build(context, builder, signature, args):
        wanted = everywhere(builder, context.cast(builder, args[1], signature.args[1], types.uint8), p.lanes)
        return builder.select(builder.icmp_unsigned("==", args[0], wanted), args[2], ir.Constant(llvm_type(v), None))
    return v(p, k, v), build
