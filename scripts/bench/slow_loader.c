/* slow_loader.c: 10 ms more for each row of a batch, linked around the order of the samples, which the loader's thread asks for
 * each row: how scripts/bench/whole.py finds out whether a slow disk reaches the step. */
#include <time.h>

#include "data/order.h"

sample __real_sample_order_next(sample_order *o);
sample __wrap_sample_order_next(sample_order *o);

sample __wrap_sample_order_next(sample_order *o) {
    nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    return __real_sample_order_next(o);
}
