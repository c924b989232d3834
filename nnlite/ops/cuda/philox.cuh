// Philox 4x32-10 (Salmon et al. 2011): the same numbers as nnlite.ops.reference.philox. nnlite.rng says which block
// serves which elements.

// The key: two words of the seed, the stream, and where the step lies.
#define KEY uint32 k0, uint32 k1, uint32 stream, const int64 *step
#define PHILOX(block) philox(block, stream, (uint32)*step, (uint32)((uint64)*step >> 32), k0, k1)

struct Words { uint32 word[4]; };
struct Normals { REAL value[4]; };

__device__ inline Words philox(int64 block, uint32 stream, uint32 step_low, uint32 step_high, uint32 k0, uint32 k1)
{
    uint32 c0 = (uint32)block, c1 = stream, c2 = step_low, c3 = step_high;
    for (int round = 0; round < 10; round++) {
        const uint64 p0 = (uint64)c0 * 0xD2511F53u, p1 = (uint64)c2 * 0xCD9E8D57u;
        c0 = (uint32)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32)p1;
        c2 = (uint32)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return Words{{c0, c1, c2, c3}};
}

// Box and Muller 1958: words a, b give sqrt(-2 ln u) (cos, sin)(2 pi v), u = (a + 1/2) / 2^32, v = b / 2^32.
__device__ inline Normals normals(Words words)
{
    const REAL scale = REAL(1) / REAL(4294967296.0);
    Normals eps;
    for (int pair = 0; pair < 4; pair += 2) {
        const REAL radius = sqrt(REAL(-2) * log((REAL(words.word[pair]) + REAL(0.5)) * scale));
        const REAL half_turns = REAL(2) * (REAL(words.word[pair + 1]) * scale);
        eps.value[pair] = radius * cospi(half_turns);
        eps.value[pair + 1] = radius * sinpi(half_turns);
    }
    return eps;
}
