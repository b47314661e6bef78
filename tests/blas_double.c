/* A library with nothing but cblas_sgemm, as Accelerate has it: plain loops, fp32 sums, and a
 * count of the calls. For tests/test_blas.py. */
#include <stdlib.h>

enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112 };

int blas_calls;

void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c,
                 int ldc) {
    int ta = trans_a == TRANS, tb = trans_b == TRANS;
    blas_calls++;
    /* What the real one reports and refuses. */
    if (order != ROW_MAJOR || (!ta && trans_a != NO_TRANS) || (!tb && trans_b != NO_TRANS) ||
        m < 0 || n < 0 || k < 0 || lda < (ta ? m : k) || ldb < (tb ? k : n) || ldc < n)
        abort();
    for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++) {
            float s = 0;
            for (int p = 0; p < k; p++)
                s += (ta ? a[(long)p * lda + i] : a[(long)i * lda + p]) *
                     (tb ? b[(long)j * ldb + p] : b[(long)p * ldb + j]);
            /* beta 0 does not read C. */
            c[(long)i * ldc + j] = alpha * s + (beta == 0 ? 0 : beta * c[(long)i * ldc + j]);
        }
}
