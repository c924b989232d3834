// Random numbers as they are: one thread a Philox block, which serves four columns of a row (see nnlite.rng).

KERNEL random_words(uint32 *out, int64 rows, int64 columns, KEY)
{
    const int64 quarter = (columns + 3) / 4, block = thread_index();
    if (block >= rows * quarter)
        return;
    const int64 row = block / quarter, q = block % quarter;
    const Words words = PHILOX(block);
    for (int part = 0; part < 4; part++) {
        const int64 column = part * quarter + q;
        if (column < columns)
            out[row * columns + column] = words.word[part];
    }
}

KERNEL normal(REAL *out, int64 rows, int64 columns, KEY)
{
    const int64 quarter = (columns + 3) / 4, block = thread_index();
    if (block >= rows * quarter)
        return;
    const int64 row = block / quarter, q = block % quarter;
    const Normals eps = normals(PHILOX(block));
    for (int part = 0; part < 4; part++) {
        const int64 column = part * quarter + q;
        if (column < columns)
            out[row * columns + column] = eps.value[part];
    }
}
