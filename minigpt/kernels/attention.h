/* Each new token's weighted mean of the values that it sees, in each head. */

#pragma once
#include <omp.h>
#include <stdlib.h>

#include "few_queries.h"
#include "many_queries.h"

typedef struct { /* numbers between one key and the next by row, head and slot */
    int64_t row, head, slot;
} Strides;

typedef struct { /* new tokens, and what they look at */
    const float *q, *k, *v;
    float *y;               /* (rows, tokens, heads, head_dim) */
    int64_t q_token, q_head; /* numbers between one query and the next by token and head */
    Strides strides;        /* of keys and values */
    const int64_t *pad;     /* of each row */
    int64_t n_rows, n_new;
    int64_t n_seen; /* slots that a row's last token sees, its padding included */
    int64_t n_head, head_dim;
    float scale;
} Attention;

/* Memory for all threads to compute on; NULL if there is none. */
static float *new_room_for(int64_t n_seen, int64_t head_dim) {
    return aligned_alloc(64, omp_get_max_threads() * room_for(n_seen, head_dim) * sizeof(float));
}

/* Both give the same bits. */
INLINE void attend(const Queries *queries, int64_t head_dim) {
    if (queries->n_queries < MANY)
        attend_few(queries, head_dim);
    else
        attend_many(queries, head_dim);
}

/* Every new token in every head. Tokens see the slots from their row's padding on up to their own; padding sees none, but
   the last token sees itself. `scratch` has room for each thread.

   Neighbouring parts of LANES queries go to different threads, for they take about as long. In every other head the last
   part comes first: each takes a little longer than the one before it, and no thread is to have all the longer ones. */
static void attend_shared(const Attention *problem, float *scratch) {
    const int64_t parts = (problem->n_new + LANES - 1) / LANES;
#pragma omp for schedule(static, 1)
    for (int64_t i = 0; i < problem->n_rows * problem->n_head * parts; i++) {
        const int64_t head = i / parts % problem->n_head, row = i / parts / problem->n_head;
        const int64_t t = (head % 2 ? parts - 1 - i % parts : i % parts) * LANES, token = row * problem->n_new + t;
        const int64_t begin = problem->pad[row] < problem->n_seen ? problem->pad[row] : problem->n_seen - 1;
        const Strides step = problem->strides;
        const int64_t offset = row * step.row + head * step.head + begin * step.slot;
        const Queries some = {
            .q = problem->q + token * problem->q_token + head * problem->q_head,
            .k = problem->k + offset,
            .v = problem->v + offset,
            .y = problem->y + (token * problem->n_head + head) * problem->head_dim,
            .n_queries = problem->n_new - t < LANES ? problem->n_new - t : LANES,
            .q_step = problem->q_token,
            .y_step = problem->n_head * problem->head_dim,
            .n_keys = problem->n_seen - problem->n_new + t + 1 - begin,
            .stride = step.slot,
            .scale = problem->scale,
            .scratch = scratch + omp_get_thread_num() * room_for(problem->n_seen, problem->head_dim),
        };
        if (problem->head_dim == 64)
            attend(&some, 64); /* that of all of GPT-2's sizes, known to the compiler */
        else
            attend(&some, problem->head_dim);
    }
}
