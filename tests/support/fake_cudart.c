/* The few functions of the CUDA runtime that the runner calls, on the host's memory. */
#include <stdlib.h>
#include <string.h>

static int streams = 0;

int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (device != 0) return 101;
    *value = attribute == 75 ? 8 : attribute == 76 ? 7 : -1;
    return 0;
}
int cudaGetDeviceProperties(void *properties, int device) {
    (void)device;
    strcpy(properties, "Fake Orin");
    return 0;
}
int cudaMalloc(void **pointer, size_t size) {
    if (size > ((size_t)1 << 40)) return 2;
    *pointer = malloc(size);
    return 0;
}
int cudaFree(void *pointer) { free(pointer); return 0; }
int cudaStreamCreate(void **stream) { *stream = (void *)(size_t)(++streams); return 0; }
int cudaStreamSynchronize(void *stream) { return stream ? 0 : 400; }
int cudaStreamDestroy(void *stream) { (void)stream; return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    (void)stream;
    if (kind != 1 && kind != 2) return 21;
    memcpy(to, from, size);
    return 0;
}
const char *cudaGetErrorString(int status) { return status == 2 ? "out of memory" : "other"; }
