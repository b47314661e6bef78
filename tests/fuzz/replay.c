/* A main for the fuzz harnesses where there is no libFuzzer: runs each file once. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *f = fopen(argv[i], "rb");
        if (!f) return perror(argv[i]), 1;
        uint8_t *data = NULL;
        size_t n = 0, got;
        do {
            uint8_t *more = realloc(data, n + 65536);
            if (!more) return perror(argv[i]), 1;
            data = more;
            n += got = fread(data + n, 1, 65536, f);
        } while (got);
        fclose(f);
        LLVMFuzzerTestOneInput(data, n);
        free(data);
    }
    return 0;
}
