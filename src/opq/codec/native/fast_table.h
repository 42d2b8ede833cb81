/* Tables of shares, from the bytes that a file holds. docs/format.md, "Fast sections". */
#ifndef OPQ_FAST_TABLE_H
#define OPQ_FAST_TABLE_H

#include "fast_coder.h"

#define LARGEST_MARK 80

/* Builds the entries of tables from their shares, which sum to 4096 in each table; whether they do. */
static int fast_fill_tables(const uint16_t *shares, uint32_t *entries, int64_t tables) {
    for (; tables > 0; tables--) {
        uint32_t sum = 0;
        for (uint32_t symbol = 0; symbol < FAST_SYMBOLS; symbol++, shares++) {
            if (*shares > FAST_TABLE - sum) return 0;
            for (uint32_t place = 0; place < *shares; place++)
                *entries++ = (*shares - 1u) | place << FAST_TABLE_BITS | symbol << 24;
            sum += *shares;
        }
        if (sum != FAST_TABLE) return 0;
    }
    return 1;
}

/* The shares of symbols `first` to `first + last`, from their bytes, `stride` apart; what is wrong with them, or NULL. */
static const char *fast_shares(const uint8_t *marks, int stride, int first, int last, uint16_t shares[FAST_SYMBOLS]) {
    uint32_t weights[FAST_SYMBOLS], total = 0, left = FAST_TABLE;
    int largest = 0;
    memset(shares, 0, sizeof *shares * FAST_SYMBOLS);
    for (int symbol = 0; symbol <= last; symbol++, marks += stride) {
        const uint32_t mark = *marks;
        if (mark > LARGEST_MARK) return "a byte of a table must be at most 80";
        total += weights[symbol] = mark < 16 ? mark : (8 + mark % 8) << (mark / 8 - 1);
        if (weights[symbol] > weights[largest]) largest = symbol;
    }
    if (!total) return "a table has no symbols";
    shares += first;
    for (int symbol = 0; symbol <= last; symbol++) {
        const uint32_t share = weights[symbol] * FAST_TABLE / total;
        shares[symbol] = (uint16_t)(!share && weights[symbol] ? 1 : share);
        left -= shares[symbol]; /* below 0 it wraps */
    }
    left += shares[largest];
    if ((int32_t)left < 1) return "a table has no share left for its most frequent symbol";
    shares[largest] = (uint16_t)left;
    return NULL;
}

#endif
