/* Threads that divide a computation. */

#pragma once
#include <omp.h>
#include <stdint.h>

typedef struct { /* this thread, of how many */
    int64_t thread, size;
} Team;

/* The team's threads compute [share(n, team.thread, team), share(n, team.thread + 1, team)) of n. */
static inline int64_t share(int64_t n, int64_t thread, Team team) { return n * thread / team.size; }

static inline void wait_for_all(Team team) {
    if (team.size > 1) {
#pragma omp barrier
    }
}
