# C types for core.py, which Cython reads beside it: classes of plain fields become structures, and
# what every operation goes through becomes C functions. What core.py does is the same without.

cimport cython


cdef class _Fields:
    cdef public object _held, _node
    cdef public bint _lent, _private


cdef class _Traits:
    cdef public object function, names
    cdef public Py_ssize_t operands
    cdef public bint is_own, linear, multilinear, waits


cdef class _Node:
    cdef public object inputs, rules, values, y
    cdef public _Traits traits
    cdef public bint held


cdef class Later:
    cdef public object _array, arguments, compute, dtype, shape, values, worth
    cdef public _Traits traits
    cdef public Py_ssize_t n


cdef class _Step:
    cdef public object g, node, values, variable, y
    cdef public list consumers, inputs
    cdef public bint is_done, is_passed, is_wanted
    cdef public Py_ssize_t n_waiting


cdef object _as_array(value)
cdef object _computed(_Fields v)
cdef object _settle(_Fields v)

@cython.locals(cls=type, v=_Fields)
cdef object _made(held, bint private, node)
cdef object _fill(_Fields v, held, bint private, node)

@cython.locals(node=_Node)
cdef object _recorded(_Traits traits, inputs, values, rules, y, bint held)

@cython.locals(values=list, n_variables=Py_ssize_t, n=Py_ssize_t, alone=bint)
cdef object _operate(_Traits traits, tuple args, dict kwargs)

cdef object _shown(_Fields v, _Traits traits)
cdef object _waiting(_Fields v)

@cython.locals(known=dict, stack=list, step=_Step, before=_Step)
cdef list _walk(result)

@cython.locals(step=_Step)
cdef _Step _step(_Fields v)

@cython.locals(step=_Step, x=_Step, ready=list, order=list)
cdef list _topological_order(list steps)

@cython.locals(step=_Step)
cdef object _compute(list order, bint differentiable)

cdef object _pull(_Step step, bint differentiable)
cdef object _sum(_Step step, bint differentiable, bint shown)

@cython.locals(consumer=_Step, node=_Node, is_own=bint)
cdef object _sum_of_parts(_Step step, bint differentiable, bint shown)

@cython.locals(top=_Step)
cdef object _gradient(_Step step, bint differentiable)

@cython.locals(consumer=_Step, node=_Node)
cdef bint _is_free(g, _Step step)

@cython.locals(step=_Step)
cdef object _mark_late(list order)

@cython.locals(x=_Step, consumer=_Step, node=_Node)
cdef bint _can_wait(_Step step)

@cython.locals(step=_Step, consumer=_Step, node=_Node, copies=dict, multilinear=bint, i=Py_ssize_t)
cdef object _freeze(list order)

@cython.locals(v=_Fields)
cdef object _safe(value, variable, dict copies)
