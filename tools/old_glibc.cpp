// What a prebuilt library takes of glibc, at the versions of 2017: linked on a newer system, it runs on older ones.
//
// glibc 2.34 gave its thread functions new versions, though they are the old ones; libstdc++ looks at a variable of
// 2.32 to save atomic operations. The linker leads calls here (--wrap).
#include <pthread.h>

#if defined(__x86_64__)
#define OLD(name) __asm__(".symver old_" #name "," #name "@GLIBC_2.2.5")
#elif defined(__aarch64__)
#define OLD(name) __asm__(".symver old_" #name "," #name "@GLIBC_2.17")
#endif

extern "C" {
int old_pthread_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int old_pthread_join(pthread_t, void**);
int old_pthread_detach(pthread_t);
OLD(pthread_create);
OLD(pthread_join);
OLD(pthread_detach);

__attribute__((visibility("hidden"))) char __libc_single_threaded = 0;

int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*run)(void*), void* argument) {
  return old_pthread_create(thread, attributes, run, argument);
}
int __wrap_pthread_join(pthread_t thread, void** result) { return old_pthread_join(thread, result); }
int __wrap_pthread_detach(pthread_t thread) { return old_pthread_detach(thread); }
}
