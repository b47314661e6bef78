/* What the files of the Tensor type share. */
#ifndef ANE_PY_TENSOR_H
#define ANE_PY_TENSOR_H

#include "py.h"

typedef struct TensorObject {
    PyObject_HEAD
    PyObject *weakrefs;
    ane_py_state *st;
    ane_tensor t;               /* t.surface is NULL once closed */
    Py_ssize_t exports;         /* live buffers, arrays and capsules */
    Py_ssize_t runs;            /* live runs */
    int image;                  /* ane_image_format; 0: none */
    PyObject *quant;            /* a Quantization; NULL: none */
    bool owns;                  /* made its surface: __sizeof__ counts it */
    bool raw;                   /* the next buffer may carry a type PEP 3118 cannot name */
} TensorObject;

#define ANE_TENSOR(obj) ((TensorObject *)(obj))
_Static_assert(sizeof(Py_ssize_t) == sizeof(int64_t), "shapes are exported as they are");
/* Cross-built: the headers may be another platform's, if what they say holds here. */
_Static_assert(SIZEOF_VOID_P == sizeof(void *) && SIZEOF_SIZE_T == sizeof(size_t) &&
               SIZEOF_LONG == sizeof(long) && SIZEOF_LONG_LONG == sizeof(long long) &&
               SIZEOF_WCHAR_T == sizeof(wchar_t),
               "pyconfig.h is of a platform with other types");

/* The view of an open tensor, or NULL with ValueError. */
const ane_tensor *ane_py_open(PyObject *self, const char *what);
/* A new instance of type (Tensor or a subclass) over t, whose surface is retained. */
PyObject *ane_py_tensor_make(PyTypeObject *type, ane_py_state *st, const ane_tensor *t);
ane_py_state *ane_py_state_by_type(PyTypeObject *type);
/* NULL or None: the default kind. 0 or -1. */
int ane_py_memory(PyObject *obj, ane_memory *out);
/* A fresh surface and its row-major view; *t holds the only reference. A named shm surface,
 * or one of ANE_PY_APART, gets a descriptor of its own. */
#define ANE_PY_APART 0x100
int ane_py_alloc(ane_py_state *st, int memory, ane_dtype dtype, int rank,
                 const int64_t *shape, size_t capacity, const char *name, ane_tensor *t);

/* The NumPy array over exporter's bytes; a memoryview is its base, so it counts as an
 * export. exporter is a Tensor or a map. */
PyObject *ane_py_array_over(ane_py_state *st, PyObject *exporter, bool *raw,
                            const ane_tensor *t, bool writable);
PyArray_Descr *ane_py_descr(ane_dtype dtype, const char *what);
int ane_py_dtype_of_descr(PyArray_Descr *d, ane_dtype *out);
/* Fills a Py_buffer for a view; shape and strides stay t's own. 0 or -1. */
int ane_py_fill_buffer(Py_buffer *b, PyObject *owner, const ane_tensor *t, bool readonly,
                       bool raw, int flags);
/* ane_tensor_copy without the interpreter lock; retains both while it runs. */
int ane_py_copy(ane_py_state *st, const ane_tensor *dst, const ane_tensor *src);
/* A view over an array (any strides), keeping it alive; *t holds a new reference. */
int ane_py_wrap_array(ane_py_state *st, PyArrayObject *a, ane_tensor *t);
/* The same, but it is the caller who looks there only while the array lives. */
int ane_py_borrow_array(ane_py_state *st, PyArrayObject *a, ane_tensor *t);
/* One element as a Python object, and back. */
PyObject *ane_py_item(const ane_tensor *t, const void *at);
int ane_py_set_item(const ane_tensor *t, void *at, PyObject *value);

#define METHOD(name) PyObject *name(PyObject *self, PyObject *args, PyObject *kw)
#define METHOD0(name) PyObject *name(PyObject *self, PyObject *unused)

/* tensor_view.c */
PyObject *ane_py_tensor_subscript(PyObject *self, PyObject *key);
int ane_py_tensor_assign(PyObject *self, PyObject *key, PyObject *value);
METHOD(ane_py_tensor_reshape);
METHOD(ane_py_tensor_view_method);
METHOD(ane_py_tensor_permute);
PyObject *ane_py_tensor_batch(PyObject *self, PyObject *arg);
PyObject *ane_py_tensor_transposed(PyObject *self, void *closure);

/* quant_type.c. The rest is for makers of views: view gets what q, its source's quantization,
 * means for it. 0 or -1. */
int ane_py_add_quant(PyObject *module, ane_py_state *st);
PyObject *ane_py_tensor_get_quant(PyObject *self, void *closure);
int ane_py_tensor_set_quant(PyObject *self, PyObject *value, void *closure);
METHOD(ane_py_tensor_dequantize);
/* The axis that the scales go along; -1: one for all, or q is NULL. */
int ane_py_quant_axis(PyObject *q);
/* n channels from start on, along the view's axis; axis -1: the view is of one channel. One
 * scale for all stays as it is. */
int ane_py_quant_give(PyObject *view, PyObject *q, int axis, int64_t start, int64_t step,
                      int64_t n);
/* For a view of t with another shape; ValueError where that has no axis for the scales. */
int ane_py_quant_reshape(PyObject *view, PyObject *q, const ane_tensor *t, int rank,
                         const int64_t *shape);

/* map_type.c, dlpack.c, share.c, image.c, pool_type.c */
METHOD(ane_py_tensor_map);
METHOD(ane_py_tensor_dlpack);
METHOD0(ane_py_tensor_dlpack_device);
PyObject *ane_py_tensor_from_dlpack(PyObject *cls, PyObject *arg);
PyObject *ane_py_tensor_id(PyObject *self, void *closure);
PyObject *ane_py_tensor_lookup(PyObject *cls, PyObject *arg);
METHOD0(ane_py_tensor_fileno);
PyObject *ane_py_tensor_fd_offset(PyObject *self, void *closure);
METHOD(ane_py_tensor_from_fd);
METHOD(ane_py_tensor_open);
PyObject *ane_py_tensor_unlink(PyObject *cls, PyObject *arg);
METHOD0(ane_py_tensor_share);
PyObject *ane_py_tensor_from_share(PyObject *cls, PyObject *args);
METHOD0(ane_py_tensor_reduce);
PyObject *ane_py_tensor_from_value(PyObject *cls, PyObject *args);
METHOD(ane_py_tensor_image);
PyObject *ane_py_tensor_format(PyObject *self, void *closure);
PyObject *ane_py_tensor_fourcc(PyObject *self, void *closure);
METHOD0(ane_py_tensor_to_pil);
METHOD(ane_py_tensor_from_pil);
PyObject *ane_py_tensor_iosurface_id(PyObject *self, void *closure);
PyObject *ane_py_tensor_iosurface_ref(PyObject *self, void *closure);
METHOD(ane_py_tensor_from_iosurface);
int ane_py_add_images(PyObject *module);
int ane_py_add_map(PyObject *module, ane_py_state *st);
int ane_py_add_pool(PyObject *module, ane_py_state *st);

/* tensor_data.c */
METHOD(ane_py_tensor_from_numpy);
METHOD(ane_py_tensor_wrap);
METHOD(ane_py_tensor_array);
METHOD0(ane_py_tensor_numpy);
METHOD0(ane_py_tensor_contiguous);
METHOD0(ane_py_tensor_item);
PyObject *ane_py_tensor_float(PyObject *self);
PyObject *ane_py_tensor_int(PyObject *self);
int ane_py_tensor_bool(PyObject *self);
METHOD0(ane_py_tensor_tolist);
PyObject *ane_py_tensor_copy_from(PyObject *self, PyObject *arg);
PyObject *ane_py_tensor_copy_(PyObject *self, PyObject *arg);
PyObject *ane_py_tensor_fill_(PyObject *self, PyObject *arg);

#endif
