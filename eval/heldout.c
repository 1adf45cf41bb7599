/* heldout.c: batches of windows are dealt to the ranks in turn; each sums its own in double, and the sums are added at the end.
 */
#include "eval/heldout.h"

#include <math.h>
#include <stdlib.h>

#include "data/loader.h"
#include "data/tokens.h"
#include "util/system.h"

/* Fills `batch` with the windows of batch number `number`; rows is how many there are. */
static int fill_windows(token_batch *batch, const token_file *file, int64_t number, int64_t n_windows, int capacity,
                        int64_t vocab_size, bool mask_documents, error *err) {
    int64_t first = number * capacity;
    batch->rows = (int)(n_windows - first < capacity ? n_windows - first : capacity);
    for (int row = 0; row < batch->rows; row++)
        if (token_batch_fill(batch, row, file, (first + row) * batch->seq_len, vocab_size, mask_documents, err)) return -1;
    return 0;
}

static int measure_share(heldout_loss *loss, model *m, const token_file *file, int64_t n_windows, bool mask_documents,
                         const ranks *r, error *err) {
    int T = m->options.T, B = m->options.B, result = 0;
    token_batch batch;
    if (token_batch_alloc(&batch, B, T, err)) return -1;
    float *losses = malloc((size_t)B * (size_t)T * sizeof *losses);
    if (!losses) result = error_set(err, STATUS_RESOURCE, "no memory for the losses of %d x %d tokens", B, T);
    for (int64_t number = r->rank; result == 0 && number * B < n_windows; number += r->size) {
        result = fill_windows(&batch, file, number, n_windows, B, m->config.vocab_size, mask_documents, err);
        if (result) break;
        model_input in = {batch.rows, batch.tokens, batch.targets, batch.doc, batch.pos};
        result = model_losses(m, &in, losses, err);
        for (int64_t i = 0; result == 0 && i < (int64_t)batch.rows * T; i++) {
            loss->nats += losses[i];
            loss->tokens += batch.targets[i] >= 0;
        }
        ranks_progress(r);
    }
    free(losses);
    token_batch_free(&batch);
    return result;
}

int heldout_measure(heldout_loss *loss, model *m, const char *prefix, bool mask_documents, int64_t max_tokens, const ranks *r,
                    error *err) {
    double start = seconds_now();
    *loss = (heldout_loss){.bytes = NAN};
    token_file file;
    token_card card;
    int result = token_file_open(&file, prefix, err);
    if (result == 0) {
        if (file.n_tokens < 2)
            result =
                error_set(err, STATUS_INPUT, "%s.bin has %lld tokens: a loss needs at least 2", prefix, (long long)file.n_tokens);
        if (result == 0) result = token_card_read(&card, prefix, err);
        int64_t n_windows = (file.n_tokens - 1 + m->options.T - 1) / m->options.T,
                asked = (max_tokens + m->options.T - 1) / m->options.T;
        bool whole = max_tokens == 0 || asked >= n_windows;
        if (result == 0) result = measure_share(loss, m, &file, whole ? n_windows : asked, mask_documents, r, err);
        /* The bytes of a part of the file are not known, so the whole's are taken in proportion. */
        if (result == 0 && card.bytes > 0)
            loss->bytes =
                whole ? (double)card.bytes : (double)card.bytes * (double)(asked * m->options.T) / (double)(file.n_tokens - 1);
        token_file_close(&file);
    }
    if (ranks_agree(r, result, err)) return -1;
    ranks_sum_double(r, &loss->nats, 1);
    ranks_sum_int64(r, &loss->tokens, 1);
    loss->seconds = seconds_now() - start;
    return 0;
}

double heldout_mean(const heldout_loss *loss) { return loss->nats / (double)loss->tokens; }

double heldout_bits_per_byte(const heldout_loss *loss) { return loss->nats / log(2.0) / loss->bytes; }
