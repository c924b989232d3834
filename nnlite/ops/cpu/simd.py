"""Vectors as values: a register of the vector unit for code compiled by Numba.

LLVM vectorises plain loops well, but it does not keep a block of sums in registers while it walks through two
matrices, which is what a matrix product or a convolution lives on. A `VectorType` is such a register: 16 float32 or 8
float64 (64 bytes; on a machine with shorter registers LLVM uses several). Local variables of this type stay in
registers; nothing but these functions touches memory:

    load(array, i)         array[i], ..., array[i + lanes - 1] of a one-dimensional array
    store(array, i, v)     the other way
    load_some, store_some  of the first n lanes: the others are read as 0, and not written
    splat(array, i)        array[i] in every lane
    zero(array)            0 in every lane, for the array's type
    fma(a, b, c)           a b + c, rounded once
    constant(array, n)     the number n in every lane
    prefetch(array, i)     a hint that array[i] will soon be read; i may lie outside
    add(a, b), sub(a, b), mul(a, b), positive(a) = max(a, 0)
    maximum(a, b)          the larger of each two; b where one is NaN
    total(a), highest(a)   the sum and the largest of the lanes (none of them NaN), numbers
    transpose(a, i, row, b, j, step)   b[j + n step + m] = a[i + m row + n] for all lanes m, n

Indices are not checked.
"""

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

BYTES = 64
WHOLE = bool(get_host_cpu_features().get("avx512f"))   # whether one register holds a vector


class VectorType(types.Type):
    def __init__(self, dtype):
        self.dtype, self.lanes = dtype, BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, llvm_type(vector))


# -- pieces of LLVM code, also for block.py ---------------------------------------------------------------------------

def llvm_type(vector):
    return ir.VectorType(_real(vector.dtype), vector.lanes)


def _real(dtype):
    return ir.FloatType() if dtype is types.float32 else ir.DoubleType()


def fused_multiply_add(builder, vector, a, b, c):
    return _call(builder, f"llvm.fma.{_suffix(vector)}", llvm_type(vector), [a, b, c])


def everywhere(builder, value, lanes):
    """The value in every lane."""
    undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def first_lanes(builder, lanes, count):
    """A mask of the first count lanes."""
    numbers = ir.Constant(ir.VectorType(ir.IntType(64), lanes), list(range(lanes)))
    return builder.icmp_signed("<", numbers, everywhere(builder, count, lanes))


def masked_load(builder, vector, place, mask):
    kind = llvm_type(vector)
    return _call(builder, f"llvm.masked.load.{_suffix(vector)}.p0{_suffix(vector)}", kind,
                 [place, _align(vector), mask, ir.Constant(kind, None)])


def masked_store(builder, vector, value, place, mask):
    _call(builder, f"llvm.masked.store.{_suffix(vector)}.p0{_suffix(vector)}", ir.VoidType(),
          [value, place, _align(vector), mask])


def element(context, builder, array_type, array, index):
    """The address of array[index]."""
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def fetch(builder, place):
    place = builder.bitcast(place, ir.PointerType(ir.IntType(8)))
    numbers = [ir.Constant(ir.IntType(32), n) for n in (0, 3, 1)]    # to read, into every cache, data
    _call(builder, "llvm.prefetch.p0i8", ir.VoidType(), [place, *numbers])


def as_vector(builder, vector, place):
    return builder.bitcast(place, ir.PointerType(llvm_type(vector)))


def _call(builder, name, result, arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _suffix(vector):
    return f"v{vector.lanes}f{vector.dtype.bitwidth}"


def _align(vector):
    return ir.Constant(ir.IntType(32), vector.dtype.bitwidth // 8)


# -- functions for compiled code --------------------------------------------------------------------------------------

@intrinsic
def load(typing, array, index):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = element(context, builder, signature.args[0], args[0], args[1])
        return builder.load(as_vector(builder, vector, place), align=array.dtype.bitwidth // 8)
    return vector(array, types.intp), build


@intrinsic
def store(typing, array, index, value):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = element(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], as_vector(builder, vector, place), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.none(array, types.intp, vector), build


@intrinsic
def load_some(typing, array, index, count):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = element(context, builder, signature.args[0], args[0], args[1])
        return masked_load(builder, vector, as_vector(builder, vector, place),
                           first_lanes(builder, vector.lanes, args[2]))
    return vector(array, types.intp, types.intp), build


@intrinsic
def store_some(typing, array, index, value, count):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = element(context, builder, signature.args[0], args[0], args[1])
        masked_store(builder, vector, args[2], as_vector(builder, vector, place),
                     first_lanes(builder, vector.lanes, args[3]))
        return context.get_dummy_value()
    return types.none(array, types.intp, vector, types.intp), build


@intrinsic
def splat(typing, array, index):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        place = element(context, builder, signature.args[0], args[0], args[1])
        return everywhere(builder, builder.load(place), vector.lanes)
    return vector(array, types.intp), build


@intrinsic
def prefetch(typing, array, index):
    def build(context, builder, signature, args):
        fetch(builder, element(context, builder, signature.args[0], args[0], args[1]))
        return context.get_dummy_value()
    return types.none(array, types.intp), build


@intrinsic
def zero(typing, array):
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        return ir.Constant(llvm_type(vector), None)
    return vector(array), build


@intrinsic
def fma(typing, a, b, c):
    def build(context, builder, signature, args):
        return fused_multiply_add(builder, a, *args)
    return a(a, a, a), build


def _binary(instruction):
    @intrinsic
    def operation(typing, a, b):
        def build(context, builder, signature, args):
            return getattr(builder, instruction)(*args)
        return a(a, a), build
    return operation


add, sub, mul = _binary("fadd"), _binary("fsub"), _binary("fmul")


@intrinsic
def constant(typing, array, number):
    """The number, rounded to the array's type, in every lane."""
    vector = VectorType(array.dtype)

    def build(context, builder, signature, args):
        value = context.cast(builder, args[1], signature.args[1], array.dtype)
        return everywhere(builder, value, vector.lanes)
    return vector(array, number), build


@intrinsic
def positive(typing, a):
    """max(a, 0); NaN stays NaN."""
    def build(context, builder, signature, args):
        nothing = ir.Constant(llvm_type(a), None)
        return builder.select(builder.fcmp_ordered("<", args[0], nothing), nothing, args[0])
    return a(a), build


@intrinsic
def total(typing, a):
    def build(context, builder, signature, args):
        kind = ir.FunctionType(_real(a.dtype), [_real(a.dtype), llvm_type(a)])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.{_suffix(a)}")
        nothing = ir.Constant(_real(a.dtype), 0.0)
        return builder.call(function, [nothing, args[0]], fastmath=["reassoc"])   # in any order: halves, quarters, ...
    return a.dtype(a), build


@intrinsic
def maximum(typing, a, b):
    """The larger of each two; b where one is NaN."""
    def build(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)
    return a(a, a), build


@intrinsic
def highest(typing, a):
    """The largest of the lanes, none of which is NaN."""
    def build(context, builder, signature, args):
        kind = ir.FunctionType(_real(a.dtype), [llvm_type(a)])
        function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fmax.{_suffix(a)}")
        return builder.call(function, args, fastmath=["nnan"])
    return a.dtype(a), build


@intrinsic
def transpose(typing, source, at, row, target, to, step):
    """Halves off the diagonal change places, then the quarters within the halves, down to single numbers."""
    vector = VectorType(source.dtype)

    def build(context, builder, signature, args):
        def line(array, index, stride, n):
            place = element(context, builder, signature.args[array], args[array], args[index])
            place = builder.gep(place, [builder.mul(args[stride], ir.Constant(ir.IntType(64), n))])
            return as_vector(builder, vector, place)

        def shuffled(a, b, lanes):
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes))

        L, align = vector.lanes, vector.dtype.bitwidth // 8
        lines, half = [builder.load(line(0, 1, 2, n), align=align) for n in range(L)], L // 2
        while half:
            upper = [L + lane - half if lane & half else lane for lane in range(L)]
            lower = [L + lane if lane & half else lane + half for lane in range(L)]
            for n in range(L):
                if not n & half:
                    a, b = lines[n], lines[n + half]
                    lines[n], lines[n + half] = shuffled(a, b, upper), shuffled(a, b, lower)
            half //= 2
        for n in range(L):
            builder.store(lines[n], line(3, 4, 5, n), align=align)
        return context.get_dummy_value()
    return types.none(source, types.intp, types.intp, target, types.intp, types.intp), build
