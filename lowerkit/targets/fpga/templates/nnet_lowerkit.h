#ifndef NNET_LOWERKIT_H_
#define NNET_LOWERKIT_H_

#include "ap_fixed.h"
#include "ap_int.h"

// Between hls4ml's numbers and the codes of lowerkit's kernels: the same bits, read as integers.
namespace lowerkit {

template <class number_T> struct code_of;
template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> struct code_of<ap_fixed<W, I, Q, O, N>> {
    typedef ap_int<W> type;
};
template <int W, int I, ap_q_mode Q, ap_o_mode O, int N> struct code_of<ap_ufixed<W, I, Q, O, N>> {
    typedef ap_uint<W> type;
};
template <int W> struct code_of<ap_int<W>> {
    typedef ap_int<W> type;
};
template <int W> struct code_of<ap_uint<W>> {
    typedef ap_uint<W> type;
};

template <int size, class number_T, class code_T> void to_codes(const number_T numbers[size], code_T codes[size]) {
    for (int i = 0; i < size; ++i) {
#pragma HLS PIPELINE II=1
        number_T number = numbers[i];
        typename code_of<number_T>::type code = 0;
        code.range() = number.range();
        codes[i] = code;
    }
}

template <int size, class code_T, class number_T> void to_numbers(const code_T codes[size], number_T numbers[size]) {
    for (int i = 0; i < size; ++i) {
#pragma HLS PIPELINE II=1
        typename code_of<number_T>::type code = codes[i];
        number_T number = 0;
        number.range() = code.range();
        numbers[i] = number;
    }
}

} // namespace lowerkit

#endif
