#include "slot.h"

#include "../base/status.h"

#include <string.h>

/* Dims from the innermost out, with both sides' strides; a dim that a row's end cuts becomes
 * two. */
typedef struct split {
    int rank;
    int64_t shape[ANE_MAX_RANK], inside[ANE_MAX_RANK], outside[ANE_MAX_RANK];
} split;

static bool push(split *s, int64_t n, int64_t inside, int64_t outside) {
    if (n == 1) return true;
    if (s->rank == ANE_MAX_RANK) return false;
    s->shape[s->rank] = n;
    s->inside[s->rank] = inside;
    s->outside[s->rank++] = outside;
    return true;
}

static bool split_dims(int rank, const int64_t *dims, const int64_t *strides, int64_t columns,
                       int64_t unit, int64_t pitch, split *s) {
    int64_t in_row = 1, rows = 1;
    s->rank = 0;
    for (int d = rank - 1; d >= 0; d--) {
        int64_t n = dims[d], step = strides[d];
        if (in_row < columns) {
            int64_t room = columns / in_row, f = n <= room ? n : room;
            if ((n <= room ? room : n) % f || !push(s, f, in_row * unit, step)) return false;
            in_row *= f;
            n /= f;
            step *= f;
        }
        if (!push(s, n, rows * pitch, step)) return false;
        rows *= n;
    }
    return true;
}

bool ane_slot_splits(int rank, const int64_t *dims, int64_t columns) {
    static const int64_t none[ANE_MAX_RANK];
    split s;
    return split_dims(rank, dims, none, columns, 1, 1, &s);
}

static char *element(const ane_slot *slot, const ane_tensor *packed, int64_t row, int64_t column) {
    return (char *)ane_tensor_data(packed) + (slot->row + row) * packed->strides[1] +
           (slot->column + column) * packed->strides[3];
}

bool ane_slot_views(const ane_slot *slot, const ane_tensor *packed, const ane_tensor *port,
                    ane_tensor *inside, ane_tensor *outside) {
    split s;
    if (!split_dims(slot->rank, slot->dims, port->strides, slot->columns, packed->strides[3],
                    packed->strides[1], &s))
        return false;
    *inside = *packed;
    *outside = *port;
    inside->offset += (size_t)(slot->row * packed->strides[1] + slot->column * packed->strides[3]);
    inside->rank = outside->rank = s.rank;
    for (int i = 0; i < s.rank; i++) {
        int k = s.rank - 1 - i;
        inside->shape[i] = outside->shape[i] = s.shape[k];
        inside->strides[i] = s.inside[k];
        outside->strides[i] = s.outside[k];
    }
    return true;
}

static ane_status check(const ane_slot *slot, const ane_tensor *packed, const ane_tensor *port,
                        ane_error *err) {
    bool fits = packed->rank == 4 && packed->dtype == slot->dtype && packed->shape[0] == 1 &&
                packed->shape[2] == 1 && slot->row + slot->rows <= packed->shape[1] &&
                slot->column + slot->columns <= packed->shape[3];
    if (!fits)
        return ane_fail(err, ANE_ERR_SHAPE, "[pack] %s: the packed tensor has no such slot",
                        slot->name);
    bool same = port->rank == slot->rank && port->dtype == slot->dtype;
    for (int i = 0; same && i < slot->rank; i++) same = port->shape[i] == slot->dims[i];
    if (!same)
        return ane_fail(err, port->dtype == slot->dtype ? ANE_ERR_SHAPE : ANE_ERR_DTYPE,
                        "[pack] %s: the tensor is not of the port's type", slot->name);
    return ANE_OK;
}

ane_status ane_slot_copy(const ane_slot *slot, const ane_tensor *packed, const ane_tensor *port,
                         bool into, ane_error *err) {
    ane_tensor inside, outside;
    ane_status st = check(slot, packed, port, err);
    if (st) return st;
    if (ane_slot_views(slot, packed, port, &inside, &outside))
        return into ? ane_tensor_copy(&inside, &outside, err)
                    : ane_tensor_copy(&outside, &inside, err);
    size_t unit = ane_dtype_size(slot->dtype);
    int64_t at[ANE_MAX_RANK] = {0}, n = ane_tensor_count(port);
    for (int64_t k = 0; k < n; k++) {
        char *p = ane_tensor_data(port);
        for (int d = 0; d < port->rank; d++) p += at[d] * port->strides[d];
        char *q = element(slot, packed, k / slot->columns, k % slot->columns);
        memcpy(into ? q : p, into ? p : q, unit);
        for (int d = port->rank - 1; d >= 0 && ++at[d] == port->shape[d]; d--) at[d] = 0;
    }
    ane_tensor_written(into ? packed : port);
    return ANE_OK;
}
