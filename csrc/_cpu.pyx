# cython: language_level=3, freethreading_compatible=True
"""Which kernel tiers the processor and the operating system can run."""

cdef extern from *:
    """
    #if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
    #include <cpuid.h>
    /* The registers that the operating system saves: bits 1, 2 for AVX; 5, 6, 7 for AVX-512. */
    static unsigned long long saved_state(void) {
        unsigned a = 0, b = 0, c = 0, d = 0;
        if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27))) return 0;
        __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
        return ((unsigned long long)d << 32) | a;
    }
    static int cpu_level(void) {
        unsigned a = 0, b = 0, c = 0, d = 0, fma;
        unsigned long long saved = saved_state();
        if ((saved & 0x6) != 0x6) return 0;
        __get_cpuid(1, &a, &b, &c, &d);
        fma = c & (1u << 12);
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !fma || !(b & (1u << 5))) return 0;
        if ((saved & 0xe6) != 0xe6) return 1;
        /* AVX-512 F, DQ, BW, VL */
        unsigned wanted = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);
        return (b & wanted) == wanted ? 2 : 1;
    }
    #else
    static int cpu_level(void) { return 0; }
    #endif
    """
    int cpu_level()


def tiers():
    """The names of the usable tiers, best first."""
    return ("avx512", "avx2", "baseline")[2 - cpu_level():]
