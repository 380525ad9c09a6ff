"""The audit: what can be proven about one model, layer by layer, and what is found by searching.

    arithmetic.py       what each channel can hold, and its accumulator, from the actual weights
    rounding.py         how many accumulators another rounding mode rounds differently, and how many are ties
    saturation.py       what a kernel would get wrong that adds products in pairs and saturates to 16 bits
    floating_point.py   the compiled path holds no floating-point type or instruction: a search of its LLVM IR
    report.py           all of that of one model, as data and as text
    page.py             the same as a page of HTML
    trace.py            every tensor that a model computes for one image, with a hash each
    vectors.py          known answers for whoever computes the same elsewhere: Philox, noise, operators, a model
    vector_format.py    the same as text, which `VECTORS.md` specifies
    vector_check.py     what another implementation computed, held against them
"""
