/* Numbers of the text to element bits: one rounding from the exact value, to nearest even,
 * in integer arithmetic only (no locale, no rounding mode, no double rounding). */
#ifndef ANE_IR_NUMBER_H
#define ANE_IR_NUMBER_H

#include "../base/status.h"

/* Does dtype hold floats? */
bool ane__is_float(ane_dtype dtype);

/* [s, s+n) is a number token (sign, digits, fraction, exponent; hex with a binary
 * exponent; inf, nan). bits gets the element's pattern. *overflow: a finite value became
 * infinite (or NaN where the format has no infinity). */
void ane__number_float(const char *s, size_t n, ane_dtype dtype, uint64_t *bits,
                       bool *overflow);
/* Decimal integer token to two's complement; false when it is not an integer or does not
 * fit `width` bits. */
bool ane__number_int(const char *s, size_t n, int width, bool is_signed, uint64_t *bits);
/* The end of the number (or true, false) at s when it is in one of the common forms, in range,
 * and directly followed by a blank, a comma or a closing bracket; NULL: ask the lexer, which
 * knows all forms and what is wrong with the others. dtype has whole bytes. */
const char *ane__number_scan(const char *s, const char *end, ane_dtype dtype, uint64_t *bits);
/* "-0x1.8p+3" of an element's pattern, "inf", "nan"; canonical. buf holds 40 bytes. */
#define ANE_NUMBER_TEXT 40
char *ane__number_text(uint64_t bits, ane_dtype dtype, char *buf);

#endif
