// Counts what a program allocates, copies and zeroes; `profile.py` preloads it.
//
// Memory from the allocator, and copies and zeros through the C library, whatever calls it. What a
// compiler has made of a small copy, loops that copy element by element, and calls within the C
// library are not seen, nor is memory that is mapped without the allocator. The counters are in the
// file BURN_ALIGN_COUNTS, as six 64-bit numbers in the order of the enum: the program itself can read
// it on the way. Processes that it starts count in the same file.
//
// Linux with glibc. Nothing here may be compiled into calls of what it defines.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALLOCATED, ALLOCATIONS, COPIED, COPIES, ZEROED, ZEROINGS, COUNTERS };

static _Atomic uint64_t own[COUNTERS];
static _Atomic uint64_t *counters = own;

// Bytes, and one more of the calls, which is the next counter.
static void count(int bytes, size_t size) {
    atomic_fetch_add_explicit(&counters[bytes], size, memory_order_relaxed);
    atomic_fetch_add_explicit(&counters[bytes + 1], 1, memory_order_relaxed);
}

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

void *malloc(size_t size) {
    count(ALLOCATED, size);
    return __libc_malloc(size);
}

// Its zeros are pages of the kernel, or the C library writes them unseen.
void *calloc(size_t number, size_t size) {
    count(ALLOCATED, number * size);
    return __libc_calloc(number, size);
}

// As if it was a new allocation; whether it copies is not known.
void *realloc(void *memory, size_t size) {
    count(ALLOCATED, size);
    return __libc_realloc(memory, size);
}

void *memalign(size_t alignment, size_t size) {
    count(ALLOCATED, size);
    return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **memory, size_t alignment, size_t size) {
    if (alignment % sizeof(void *) || alignment & (alignment - 1) || !alignment) return EINVAL;
    void *found = memalign(alignment, size);
    if (!found) return ENOMEM;
    *memory = found;
    return 0;
}

typedef void *Copy(void *, const void *, size_t);
typedef void *Set(void *, int, size_t);
static Copy *real_copy, *real_move;
static Set *real_set;

// Byte by byte, until the functions of the C library have been found.
static void *slow_copy(void *to, const void *from, size_t size) {
    volatile char *out = to;
    const volatile char *in = from;
    if ((uintptr_t)to <= (uintptr_t)from) {
        for (size_t i = 0; i < size; i++) out[i] = in[i];
    } else {
        for (size_t i = size; i-- > 0;) out[i] = in[i];
    }
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    count(COPIED, size);
    return real_copy ? real_copy(to, from, size) : slow_copy(to, from, size);
}

void *memmove(void *to, const void *from, size_t size) {
    count(COPIED, size);
    return real_move ? real_move(to, from, size) : slow_copy(to, from, size);
}

void *memset(void *to, int value, size_t size) {
    if (value == 0) count(ZEROED, size);
    if (real_set) return real_set(to, value, size);
    volatile char *out = to;
    for (size_t i = 0; i < size; i++) out[i] = (char)value;
    return to;
}

__attribute__((constructor)) static void begin(void) {
    Copy *copy = (Copy *)dlsym(RTLD_NEXT, "memcpy");
    Copy *move = (Copy *)dlsym(RTLD_NEXT, "memmove");
    Set *set = (Set *)dlsym(RTLD_NEXT, "memset");
    real_copy = copy;
    real_move = move;
    real_set = set;
    const char *path = getenv("BURN_ALIGN_COUNTS");
    if (!path) return;
    int file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) return;
    if (ftruncate(file, sizeof own) == 0) {
        void *shared = mmap(0, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (shared != MAP_FAILED) counters = shared;
    }
    close(file);
}
