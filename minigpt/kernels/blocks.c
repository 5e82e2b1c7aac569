/* GPT-2's blocks, for processors with AVX-512.

`c_functions.py` compiles and calls it, and names in Python what each function computes. To the bit:
  - a row gives what it gives alone, for nothing is added up in an order that depends on other rows or on threads;
  - `through_blocks` gives what the other functions give that are called one after the other.

A function that ends in `_shared` is called by all threads of a team with the same arguments, and they divide the work.
It ends with a barrier; that of `omp for` is one, too. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "embeddings.h"
#include "int8_products.h"
#include "plain_products.h"

#define AT_ONCE 128 /* rows: what is computed between two products stays in the processor's caches */

typedef struct { /* memory for what is computed on the way */
    float *normed, *hidden; /* of at most AT_ONCE rows */
    float *widened;         /* weights of float16, for each thread */
    Rounded rounded;
} Scratch;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* Room for layers of up to `width` inputs, and `hidden` ones in the MLP; NULL if there is none. */
static Scratch *new_scratch(int64_t n_rows, int64_t width, int64_t hidden) {
    const int64_t rows = smaller(n_rows, AT_ONCE), wide = TO_64(width > hidden ? width : hidden);
    const int64_t normed = TO_64(rows * width * 4), of_hidden = TO_64(rows * hidden * 4);
    const int64_t numbers = rows * wide, carries = rows * wide / INPUTS * sizeof(Carry), of_rows = TO_64(rows * 4);
    const int64_t widened = omp_get_max_threads() * TOGETHER * wide * 4;
    Scratch *scratch = malloc(sizeof *scratch);
    char *memory = aligned_alloc(64, normed + of_hidden + numbers + carries + 2 * of_rows + widened);
    if (!scratch || !memory) {
        free(scratch), free(memory);
        return NULL;
    }
    scratch->normed = (float *)memory;
    scratch->hidden = (float *)(memory += normed);
    scratch->rounded.numbers = (uint8_t *)(memory += of_hidden);
    scratch->rounded.carries = (Carry *)(memory += numbers);
    scratch->rounded.n_carries = (int32_t *)(memory += carries);
    scratch->rounded.step = (float *)(memory += of_rows);
    scratch->widened = (float *)(memory + of_rows);
    return scratch;
}

static void free_scratch(Scratch *scratch) {
    if (scratch) free(scratch->normed);
    free(scratch);
}

/* A layer for at most AT_ONCE rows, after a norm if there is one. */
static void linear_shared(const float *x, int64_t n_rows, const Norm *norm, const Linear *layer, Epilogue then,
                          Scratch *s, float *y) {
    if (norm) {
        /* No thread waits for another: the loop that rounds gives each thread the same rows. */
#pragma omp for schedule(static) nowait
        for (int64_t r = 0; r < n_rows; r++) normalize(x + r * norm->n, norm, s->normed + r * norm->n);
        x = s->normed;
    }
    if (layer->kind == INT8) {
        Rounded rounded = s->rounded;
        rounded.wide = TO_64(layer->n_in); /* inputs beyond its own are multiplied by zeros, so any number will do */
        round_shared(x, n_rows, layer, &rounded);
        multiply_int8_shared(rounded, n_rows, layer, then, y);
        return;
    }
    if (norm) {
#pragma omp barrier
    }
    float *widened = s->widened + omp_get_thread_num() * TOGETHER * layer->n_in;
    multiply_plain_shared(x, n_rows, layer, then, widened, y);
}

/* Both additions of a block to the residual stream x; y is what the heads give. */
static void add_branches_shared(float *x, const float *y, int64_t n_rows, const Block *block, Scratch *s) {
    linear_shared(y, n_rows, NULL, &block->out, ADD, s, x);
    linear_shared(x, n_rows, &block->mlp_norm, &block->up, GELU, s, s->hidden);
    linear_shared(s->hidden, n_rows, NULL, &block->down, ADD, s, x);
}

void layer_norm(const float *x, int64_t n_rows, const Norm *norm, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) normalize(x + r * norm->n, norm, y + r * norm->n);
}

void gelu(const float *x, int64_t n, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += LANES) gelu_of_some(x + i, n - i, y + i);
}

/* The rest return whether there was memory for them. */

/* A layer, after a norm if there is one. */
static int linear_after(const float *x, int64_t n_rows, const Norm *norm, const Linear *layer, float *y) {
    Scratch *scratch = new_scratch(n_rows, layer->n_in, 0);
    if (!scratch) return 0;
#pragma omp parallel
    for (int64_t r = 0; r < n_rows; r += AT_ONCE)
        linear_shared(x + r * layer->n_in, smaller(n_rows - r, AT_ONCE), norm, layer, STORE, scratch,
                      y + r * layer->n_out);
    free_scratch(scratch);
    return 1;
}

int linear(const float *x, int64_t n_rows, const Linear *layer, float *y) {
    return linear_after(x, n_rows, NULL, layer, y);
}

int attention(const Attention *of) {
    float *room = new_room_for(of->n_seen, of->head_dim);
    if (!room) return 0;
#pragma omp parallel
    attend_shared(of, room);
    free(room);
    return 1;
}

/* Whether each layer reads what the one before it gives. */
int fit_together(const Block *blocks, int64_t n_layer, int64_t width) {
    for (const Block *block = blocks; block < blocks + n_layer; block++) {
        const Linear *qkv = &block->qkv, *out = &block->out, *up = &block->up, *down = &block->down;
        if (block->attn_norm.n != width || qkv->n_in != width || qkv->n_out != 3 * width || out->n_in != width ||
            out->n_out != width || block->mlp_norm.n != width || up->n_in != width || down->n_in != up->n_out ||
            down->n_out != width || block->n_head != blocks->n_head || width % block->n_head)
            return 0;
    }
    return 1;
}

typedef struct {
    float *slots;         /* of keys and values */
    int64_t layer_stride; /* numbers between one layer's keys and the next one's */
    int64_t value_offset; /* numbers between a layer's keys and its values */
    Strides strides;
    const int64_t *pad; /* of each row */
    int64_t length;     /* slots that are in use */
} Cache;

/* New keys and values, which follow their queries, go to the slots of one layer that come next.

   No thread waits for another: with one token in each row, the one that writes a head's key is the one that reads it. */
static void store_new_shared(const Attention *of, const Cache *cache, float *k, float *v) {
    const int64_t width = of->n_head * of->head_dim, size = of->head_dim * sizeof(float);
#pragma omp for schedule(static, 1) nowait
    for (int64_t i = 0; i < of->n_rows * of->n_new * of->n_head; i++) {
        const int64_t token = i / of->n_head, head = i % of->n_head;
        const int64_t row = token / of->n_new, slot = cache->length + token % of->n_new;
        const int64_t to = row * of->strides.row + head * of->strides.head + slot * of->strides.slot;
        const float *own = of->q + token * of->q_token + head * of->q_head;
        memcpy(k + to, own + width, size);
        memcpy(v + to, own + 2 * width, size);
    }
}

/* Moves each row's last `n_last` tokens of `n` to the front, so that the rows lie one after the other again. */
static void keep_last(float *x, int64_t n_rows, int64_t n, int64_t n_last, int64_t width) {
    for (int64_t row = 0; row < n_rows; row++)
        memmove(x + row * n_last * width, x + (row * n + n - n_last) * width, n_last * width * sizeof(float));
}

/* New tokens through all blocks, which fit together, in place: x is (n_rows, n_new, width), and then begins with
   (n_rows, n_last, width), the last of each row. */
int through_blocks(float *x, const Block *blocks, int64_t n_layer, const Cache *cache, int64_t n_rows, int64_t n_new,
                   int64_t n_last) {
    const int64_t width = blocks->out.n_in, n_head = blocks->n_head;
    const int64_t n_tokens = n_rows * n_new, n_seen = cache->length + n_new;
    int64_t hidden = 0;
    for (int64_t layer = 0; layer < n_layer; layer++)
        if (blocks[layer].down.n_in > hidden) hidden = blocks[layer].down.n_in;
    Scratch *scratch = new_scratch(n_tokens, width, hidden);
    float *qkv = malloc(n_tokens * 3 * width * sizeof(float)), *mixed = malloc(n_tokens * width * sizeof(float));
    float *room = new_room_for(n_seen, width / n_head);
    const int is_room = scratch && qkv && mixed && room;
#pragma omp parallel if (is_room)
    for (int64_t layer = 0; layer < (is_room ? n_layer : 0); layer++) {
        const Block *block = blocks + layer;
        for (int64_t t = 0; t < n_tokens; t += AT_ONCE)
            linear_shared(x + t * width, smaller(n_tokens - t, AT_ONCE), &block->attn_norm, &block->qkv, STORE, scratch,
                          qkv + t * 3 * width);
        float *k = cache->slots + layer * cache->layer_stride, *v = k + cache->value_offset;
        Attention heads = {.q = qkv, .k = k, .v = v, .y = mixed, .q_token = 3 * width, .q_head = width / n_head,
                           .strides = cache->strides, .pad = cache->pad, .n_rows = n_rows, .n_new = n_new,
                           .n_seen = n_seen, .n_head = n_head, .head_dim = width / n_head, .scale = block->scale};
        store_new_shared(&heads, cache, k, v);
        if (n_new > 1) {
#pragma omp barrier
        }
        if (layer == n_layer - 1 && n_last < n_new) { /* of other tokens only keys and values are wanted there */
#pragma omp single
            keep_last(x, n_rows, n_new, n_last, width), keep_last(qkv, n_rows, n_new, n_last, 3 * width);
            heads.n_new = n_last;
        }
        attend_shared(&heads, room);
        const int64_t n_left = n_rows * heads.n_new;
        for (int64_t t = 0; t < n_left; t += AT_ONCE)
            add_branches_shared(x + t * width, mixed + t * width, smaller(n_left - t, AT_ONCE), block, scratch);
    }
    free_scratch(scratch);
    free(qkv), free(mixed), free(room);
    return is_room;
}

typedef struct {
    Table tokens, positions;
    const Block *blocks;
    int64_t n_layer;
    Norm final_norm;
    Linear head;
} Model;

enum { NO_MEMORY, DONE, NOT_IN_TABLES };

/* The logits of what follows each row: tokens are (n_rows, n_new), logits (n_rows, outputs of the head). NOT_IN_TABLES if
   there is no embedding of a token or a position. */
int next_logits(const int64_t *tokens, const Model *of, const Cache *cache, int64_t n_rows, int64_t n_new, float *logits) {
    const int64_t width = of->final_norm.n;
    float *x = malloc(n_rows * n_new * width * sizeof(float));
    if (!x) return NO_MEMORY;
    int result = DONE;
    for (int64_t i = 0; i < n_rows * n_new && result == DONE; i++) {
        const int64_t slot = cache->length + i % n_new, pad = cache->pad[i / n_new];
        const int64_t position = slot < pad ? 0 : slot - pad;
        if (tokens[i] < 0 || tokens[i] >= of->tokens.n || position >= of->positions.n)
            result = NOT_IN_TABLES;
        else
            embed(&of->tokens, tokens[i], &of->positions, position, x + i * width);
    }
    if (result == DONE && !(through_blocks(x, of->blocks, of->n_layer, cache, n_rows, n_new, 1) &&
                            linear_after(x, n_rows, &of->final_norm, &of->head, logits)))
        result = NO_MEMORY;
    free(x);
    return result;
}
