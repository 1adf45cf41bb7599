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

/* A rank's memory for its batches. */
typedef struct share {
    token_batch batch;
    float *losses; /* (B,T) */
} share;

static void share_close(share *s) {
    free(s->losses);
    token_batch_free(&s->batch);
}

static int share_open(share *s, const model *m, error *err) {
    int T = m->options.T, B = m->options.B;
    *s = (share){.losses = malloc((size_t)B * (size_t)T * sizeof *s->losses)};
    if (!s->losses) return error_set(err, STATUS_RESOURCE, "no memory for the losses of %d x %d tokens", B, T);
    return token_batch_alloc(&s->batch, B, T, err);
}

static int measure_batch(heldout_loss *loss, model *m, share *s, bool mask_documents, error *err) {
    const int32_t *doc = mask_documents ? s->batch.doc : NULL;
    model_input in = {s->batch.rows, s->batch.tokens, s->batch.targets, doc, s->batch.pos};
    if (model_losses(m, &in, s->losses, err)) return -1;
    for (int64_t i = 0; i < (int64_t)in.rows * m->options.T; i++) {
        loss->nats += s->losses[i];
        loss->tokens += in.targets[i] >= 0;
    }
    return 0;
}

/* All ranks come round as often as the one with the most batches, because they ask together whether to go on. */
static int measure_share(heldout_loss *loss, model *m, const token_file *file, int64_t n_windows, bool mask_documents,
                         const heldout_stop *stop, const ranks *r, error *err) {
    int B = m->options.B;
    int64_t n_batches = (n_windows + B - 1) / B;
    share s;
    int result = share_open(&s, m, err);
    for (int64_t first = 0; first < n_batches; first += r->size) {
        int64_t number = first + r->rank;
        if (stop && stop->asked(stop->context, result != 0)) {
            loss->abandoned = true;
            break;
        }
        if (result || number >= n_batches) continue;
        result = fill_windows(&s.batch, file, number, n_windows, B, m->config.vocab_size, mask_documents, err);
        if (result == 0) result = measure_batch(loss, m, &s, mask_documents, err);
        ranks_progress(r);
    }
    share_close(&s);
    return result;
}

static int open_file(token_file *file, token_card *card, const char *prefix, error *err) {
    if (token_file_open(file, prefix, err)) return -1;
    int result = token_card_read(card, prefix, err);
    if (file->n_tokens < 2)
        result =
            error_set(err, STATUS_INPUT, "%s.bin has %lld tokens: a loss needs at least 2", prefix, (long long)file->n_tokens);
    if (result) token_file_close(file);
    return result;
}

/* Of the whole file, or of its first max_tokens. */
static int64_t windows_of(const token_file *file, int T, int64_t max_tokens) {
    int64_t all = (file->n_tokens - 1 + T - 1) / T, asked = (max_tokens + T - 1) / T;
    return max_tokens == 0 || asked >= all ? all : asked;
}

int heldout_windows(int64_t *n, const char *prefix, int T, int64_t max_tokens, error *err) {
    token_file file;
    token_card card;
    if (open_file(&file, &card, prefix, err)) return -1;
    *n = windows_of(&file, T, max_tokens);
    token_file_close(&file);
    return 0;
}

int heldout_measure(heldout_loss *loss, model *m, const char *prefix, bool mask_documents, int64_t max_tokens,
                    const heldout_stop *stop, const ranks *r, error *err) {
    double start = seconds_now();
    int T = m->options.T;
    token_file file;
    token_card card;
    *loss = (heldout_loss){.bytes = NAN};
    if (ranks_agree(r, open_file(&file, &card, prefix, err), err)) return -1;
    int64_t n_windows = windows_of(&file, T, max_tokens);
    bool whole = n_windows == windows_of(&file, T, 0);
    int result = measure_share(loss, m, &file, n_windows, mask_documents, stop, r, err);
    /* The bytes of a part of the file are not known, so the whole's are taken in proportion. */
    if (card.bytes > 0)
        loss->bytes = whole ? (double)card.bytes : (double)card.bytes * (double)(n_windows * T) / (double)(file.n_tokens - 1);
    token_file_close(&file);
    if (ranks_agree(r, result, err)) return -1;
    ranks_sum_double(r, &loss->nats, 1);
    ranks_sum_int64(r, &loss->tokens, 1);
    loss->seconds = seconds_now() - start;
    return 0;
}

void heldout_add(heldout_loss *total, const heldout_loss *loss) {
    total->nats += loss->nats;
    total->tokens += loss->tokens;
    total->bytes += loss->bytes;
    total->seconds += loss->seconds;
    total->abandoned = total->abandoned || loss->abandoned;
}

double heldout_mean(const heldout_loss *loss) { return loss->nats / (double)loss->tokens; }

double heldout_bits_per_byte(const heldout_loss *loss) { return loss->nats / log(2.0) / loss->bytes; }
