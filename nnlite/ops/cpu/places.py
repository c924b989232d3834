"""Which pixel of a window is the largest: comparisons of vectors (simd.py), and vectors of bytes for the places.

LLVM does not vectorise loops over so many short rows, some of bytes, some of floats. A `Places` holds a byte for each
lane of a vector, a `Mask` a bit.

    get(array, i, n), put(array, i, v, n)                   the first n lanes of a vector of array, from array[i] on
    get_places(array, i, like, n), put_places(array, i, p, n)   the same for bytes; like: a vector with as many lanes
    places_of(k, like)     k in every lane
    above(a, b)            where a > b
    wins(a, b)             where a > b, or a is NaN and b is not
    choose(mask, a, b)     a where the mask is set, else b; two vectors or two Places
    larger(a, k, b, p)     the winner, b unless wins(a, b), and its place: k of a, p of b
    only(p, k, v)          v where p is k, else 0
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from .simd import VectorType, as_vector, element, everywhere, first_lanes, llvm_type, masked_load, masked_store

BYTE, ALIGN = ir.IntType(8), ir.Constant(ir.IntType(32), 1)


class Lanes(types.Type):
    """One integer of `bits` for each lane."""

    def __init__(self, bits, lanes):
        self.bits, self.lanes = bits, lanes
        super().__init__(name=f"Lanes({bits}, {lanes})")


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, ir.VectorType(ir.IntType(kind.bits), kind.lanes))


@intrinsic
def get(typing, array, i, n):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = as_vector(builder, vector, element(context, builder, signature.args[0], args[0], args[1]))
        return _either(builder, args[2], vector.lanes,
                       lambda: builder.load(place, align=array.dtype.bitwidth // 8),
                       lambda mask: masked_load(builder, vector, place, mask))
    return vector(array, types.intp, types.intp), build


@intrinsic
def put(typing, array, i, v, n):
    def build(context, builder, signature, args):
        place = as_vector(builder, v, element(context, builder, signature.args[0], args[0], args[1]))
        _either(builder, args[3], v.lanes,
                lambda: builder.store(args[2], place, align=array.dtype.bitwidth // 8),
                lambda mask: masked_store(builder, v, args[2], place, mask))
        return context.get_dummy_value()
    return types.none(array, types.intp, v, types.intp), build


@intrinsic
def get_places(typing, array, i, like, n):
    lanes = like.lanes

    def build(context, builder, signature, args):
        kind = ir.VectorType(BYTE, lanes)
        place = _bytes(context, builder, signature, args, kind)
        return _either(builder, args[3], lanes, lambda: builder.load(place, align=1),
                       lambda mask: _call(builder, f"llvm.masked.load.v{lanes}i8.p0v{lanes}i8", kind,
                                          [place, ALIGN, mask, ir.Constant(kind, None)]))
    return Lanes(8, lanes)(array, types.intp, like, types.intp), build


@intrinsic
def put_places(typing, array, i, p, n):
    def build(context, builder, signature, args):
        place = _bytes(context, builder, signature, args, args[2].type)
        _either(builder, args[3], p.lanes, lambda: builder.store(args[2], place, align=1),
                lambda mask: _call(builder, f"llvm.masked.store.v{p.lanes}i8.p0v{p.lanes}i8", ir.VoidType(),
                                   [args[2], place, ALIGN, mask]))
        return context.get_dummy_value()
    return types.none(array, types.intp, p, types.intp), build


def _either(builder, count, lanes, whole, some):
    """whole() for all lanes, else some(mask): masks are for the last channels of a pixel alone, because a machine that
    has none for bytes takes one lane after the other."""
    with builder.if_else(builder.icmp_signed("==", count, ir.Constant(count.type, lanes))) as (every, part):
        with every:
            a, a_block = whole(), builder.block
        with part:
            b, b_block = some(first_lanes(builder, lanes, count)), builder.block
    if isinstance(a.type, ir.VoidType):
        return None
    result = builder.phi(a.type)
    result.add_incoming(a, a_block)
    result.add_incoming(b, b_block)
    return result


def _bytes(context, builder, signature, args, kind):
    """The address of array[i] as that of a vector."""
    return builder.bitcast(element(context, builder, signature.args[0], args[0], args[1]), ir.PointerType(kind))


def _call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


@intrinsic
def places_of(typing, k, like):
    def build(context, builder, signature, args):
        return everywhere(builder, context.cast(builder, args[0], signature.args[0], types.uint8), like.lanes)
    return Lanes(8, like.lanes)(k, like), build


@intrinsic
def above(typing, a, b):
    def build(context, builder, signature, args):
        return builder.fcmp_ordered(">", *args)
    return Lanes(1, a.lanes)(a, b), build


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


@njit(inline="always")
def larger(a, k, b, p):
    won = wins(a, b)
    return choose(won, a, b), choose(won, places_of(k, a), p)


@intrinsic
def only(typing, p, k, v):
    def build(context, builder, signature, args):
        wanted = everywhere(builder, context.cast(builder, args[1], signature.args[1], types.uint8), p.lanes)
        return builder.select(builder.icmp_unsigned("==", args[0], wanted), args[2], ir.Constant(llvm_type(v), None))
    return v(p, k, v), build
