/* GPT-2, for processors with AVX-512: its parts one by one, all blocks, and all from token ids to logits.

`c_functions.py` compiles and calls it, and names in Python what each function computes. To the bit:
  - a row gives what it gives alone, for nothing is added up in an order that depends on other rows or on threads;
  - `through_blocks` and `next_logits` give what the other functions give that are called one after the other.

A function that ends in `_shared` is called by all threads of a team with the same arguments, and they divide the work.
It ends when all are done. A few rows are divided by outputs, among all threads; of many rows, each thread computes some
by itself, and none waits for another. */

#include <omp.h>
#include <stdlib.h>
#include <string.h>

#include "attention.h"
#include "embeddings.h"
#include "int8_products.h"
#include "plain_products.h"

#define EACH 64      /* rows, at most, that a thread computes by itself: what lies between two products stays in its caches */
#define EACH_FROM 32 /* rows for each thread, from which on it does so */

typedef struct { /* memory for what is computed on the way, for some rows */
    float *normed, *hidden;
    int64_t width, n_hidden; /* of these */
    Rounded rounded;
    float *widened; /* weights of float16, for each thread */
} Scratch;

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* How many of n rows a thread is to compute by itself; 0 where they are few. */
static int64_t rows_of_each(int64_t n_rows) {
    const int64_t threads = omp_get_max_threads(), each = (n_rows + threads - 1) / threads;
    return each < EACH_FROM ? 0 : smaller(each, EACH);
}

/* Room for layers of up to `width` inputs, and `hidden` ones in the MLP, as they are divided; NULL if there is none. */
static Scratch *new_scratch(int64_t n_rows, int64_t width, int64_t hidden) {
    const int64_t each = rows_of_each(n_rows), rows = each ? omp_get_max_threads() * each : n_rows;
    const int64_t wide = TO_64(width > hidden ? width : hidden);
    const int64_t normed = TO_64(rows * width * 4), of_hidden = TO_64(rows * hidden * 4);
    const int64_t numbers = rows * wide, carries = rows * wide / INPUTS * sizeof(Carry), of_rows = TO_64(rows * 4);
    const int64_t widened = omp_get_max_threads() * TOGETHER * wide * 4;
    Scratch *scratch = malloc(sizeof *scratch);
    char *memory = aligned_alloc(64, normed + of_hidden + numbers + carries + 2 * of_rows + widened);
    if (!scratch || !memory) {
        free(scratch), free(memory);
        return NULL;
    }
    scratch->width = width, scratch->n_hidden = hidden, scratch->rounded.wide = wide;
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

/* That of the rows from r on. */
static Scratch scratch_from(const Scratch *s, int64_t r) {
    return (Scratch){s->normed + r * s->width, s->hidden + r * s->n_hidden, s->width, s->n_hidden,
                     rows_from(s->rounded, r), s->widened};
}

typedef void Compute(const void *arguments, int64_t first, int64_t n_rows, const Scratch *s, Team team);

/* Computes something for all rows: of a few, all threads together; of many, each thread some by itself. */
static void divide_shared(int64_t n_rows, Compute *compute, const void *arguments, const Scratch *s) {
    const int64_t each = rows_of_each(n_rows);
    const Team all = {omp_get_thread_num(), omp_get_num_threads()}, alone = {0, 1};
    if (!each) {
        compute(arguments, 0, n_rows, s, all);
        return;
    }
    const Scratch own = scratch_from(s, all.thread * each);
#pragma omp for schedule(dynamic, 1)
    for (int64_t r = 0; r < n_rows; r += each) compute(arguments, r, smaller(n_rows - r, each), &own, alone);
}

/* A layer, after a norm if there is one. */
static void linear_shared(const float *x, int64_t n_rows, const Norm *norm, const Linear *layer, Epilogue then,
                          const Scratch *s, Team team, float *y) {
    if (norm) {
        for (int64_t r = share(n_rows, team.thread, team); r < share(n_rows, team.thread + 1, team); r++)
            normalize(x + r * norm->n, norm, s->normed + r * norm->n);
        x = s->normed;
    }
    if (layer->kind == INT8) { /* of the rows that it has normalized, a thread rounds the same */
        Rounded rounded = s->rounded;
        rounded.wide = TO_64(layer->n_in); /* inputs beyond its own are multiplied by zeros, so any number will do */
        round_shared(x, n_rows, layer, team, &rounded);
        multiply_int8_shared(rounded, n_rows, layer, then, team, y);
        return;
    }
    if (norm) wait_for_all(team);
    float *widened = s->widened + omp_get_thread_num() * TOGETHER * s->rounded.wide; /* whatever layer others compute */
    multiply_plain_shared(x, n_rows, layer, then, team, widened, y);
}

void layer_norm(const float *x, int64_t n_rows, const Norm *norm, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) normalize(x + r * norm->n, norm, y + r * norm->n);
}

void gelu(const float *x, int64_t n, float *y) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i += LANES) gelu_of_some(x + i, n - i, y + i);
}

typedef struct {
    const float *x;
    const Norm *norm; /* before the layer, or NULL */
    const Linear *layer;
    float *y;
} LinearCall;

static void call_shared(const void *arguments, int64_t first, int64_t n_rows, const Scratch *s, Team team) {
    const LinearCall *call = arguments;
    linear_shared(call->x + first * call->layer->n_in, n_rows, call->norm, call->layer, STORE, s, team,
                  call->y + first * call->layer->n_out);
}

/* Whether there was memory for it. */
static int linear_after(const float *x, int64_t n_rows, const Norm *norm, const Linear *layer, float *y) {
    const LinearCall call = {x, norm, layer, y};
    Scratch *scratch = new_scratch(n_rows, layer->n_in, 0);
    if (!scratch) return 0;
#pragma omp parallel
    divide_shared(n_rows, call_shared, &call, scratch);
    free_scratch(scratch);
    return 1;
}

/* `linear`, `attention` and `through_blocks` return whether there was memory for what they compute on the way. */

int linear(const float *x, int64_t n_rows, const Linear *layer, float *y) {
    return linear_after(x, n_rows, NULL, layer, y);
}

int attention(const Attention *problem) {
    float *room = new_room_for(problem->n_seen, problem->head_dim);
    if (!room) return 0;
#pragma omp parallel
    attend_shared(problem, room);
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
static void store_new_shared(const Attention *problem, const Cache *cache, float *k, float *v) {
    const int64_t width = problem->n_head * problem->head_dim, size = problem->head_dim * sizeof(float);
#pragma omp for schedule(static, 1) nowait
    for (int64_t i = 0; i < problem->n_rows * problem->n_new * problem->n_head; i++) {
        const int64_t token = i / problem->n_head, head = i % problem->n_head;
        const int64_t row = token / problem->n_new, slot = cache->length + token % problem->n_new;
        const int64_t to = row * problem->strides.row + head * problem->strides.head + slot * problem->strides.slot;
        const float *own = problem->q + token * problem->q_token + head * problem->q_head;
        memcpy(k + to, own + width, size);
        memcpy(v + to, own + 2 * width, size);
    }
}

/* Moves each row's last `n_last` tokens of `n` to the front, so that the rows lie one after the other again. */
static void keep_last(float *x, int64_t n_rows, int64_t n, int64_t n_last, int64_t width) {
    for (int64_t row = 0; row < n_rows; row++)
        memmove(x + row * n_last * width, x + (row * n + n - n_last) * width, n_last * width * sizeof(float));
}

typedef struct {
    float *x;       /* the residual stream */
    const float *y; /* what the heads give */
    const Block *block;
} Branches;

/* Both additions of a block to the residual stream. */
static void add_branches_shared(const void *arguments, int64_t first, int64_t n_rows, const Scratch *s, Team team) {
    const Branches *branches = arguments;
    const Block *block = branches->block;
    float *x = branches->x + first * block->out.n_out;
    linear_shared(branches->y + first * block->out.n_in, n_rows, NULL, &block->out, ADD, s, team, x);
    linear_shared(x, n_rows, &block->mlp_norm, &block->up, GELU, s, team, s->hidden);
    linear_shared(s->hidden, n_rows, NULL, &block->down, ADD, s, team, x);
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
        const LinearCall queries_keys_values = {x, &block->attn_norm, &block->qkv, qkv};
        divide_shared(n_tokens, call_shared, &queries_keys_values, scratch);
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
        const Branches branches = {x, mixed, block};
        divide_shared(n_rows * heads.n_new, add_branches_shared, &branches, scratch);
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

enum { NO_MEMORY, DONE, NOT_IN_TABLES }; /* what `next_logits` returns; in c_functions.py, too */

/* The logits of what follows each row: tokens are (n_rows, n_new), logits (n_rows, outputs of the head). New keys and
   values go to the cache's next slots. NOT_IN_TABLES, before anything is written there, if a token or a position has no
   embedding. */
int next_logits(const int64_t *tokens, const Model *model, const Cache *cache, int64_t n_rows, int64_t n_new,
                float *logits) {
    const int64_t width = model->final_norm.n;
    float *x = malloc(n_rows * n_new * width * sizeof(float));
    if (!x) return NO_MEMORY;
    int result = DONE;
    for (int64_t i = 0; i < n_rows * n_new && result == DONE; i++) {
        const int64_t slot = cache->length + i % n_new, pad = cache->pad[i / n_new];
        const int64_t position = slot < pad ? 0 : slot - pad; /* as `_positions` in model.py */
        if (tokens[i] < 0 || tokens[i] >= model->tokens.n || position >= model->positions.n)
            result = NOT_IN_TABLES;
        else
            embed(&model->tokens, tokens[i], &model->positions, position, x + i * width);
    }
    if (result == DONE && !(through_blocks(x, model->blocks, model->n_layer, cache, n_rows, n_new, 1) &&
                            linear_after(x, n_rows, &model->final_norm, &model->head, logits)))
        result = NO_MEMORY;
    free(x);
    return result;
}
