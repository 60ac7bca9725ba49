// The kernels of the model, as PTX for every GPU from sm_70 on: the driver compiles it when the
// program starts, so that no CUDA toolkit is needed. host_kernels.cc does the same on the host.
//
// All numbers are 32-bit words without a sign, whose sums wrap around. So the result of a whole
// request can be foretold word for word (pattern.h), whatever the order of additions.
#pragma once

namespace server {

inline constexpr const char* kKernels = R"ptx(
.version 6.4
.target sm_70
.address_size 64

// dst[i] = src[i / times] * scale + bias[i], for i < count; a null bias adds nothing.
.visible .entry expand(
    .param .u64 p_dst, .param .u64 p_src, .param .u64 p_bias,
    .param .u32 p_count, .param .u32 p_times, .param .u32 p_scale)
{
    .reg .pred %p<3>;
    .reg .b32 %i, %block, %threads, %lane, %count, %times, %scale, %from, %value, %more;
    .reg .b64 %dst, %src, %bias, %at;

    ld.param.u32 %count, [p_count];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %lane, %tid.x;
    mad.lo.u32 %i, %block, %threads, %lane;
    setp.ge.u32 %p1, %i, %count;
    @%p1 ret;

    ld.param.u32 %times, [p_times];
    ld.param.u32 %scale, [p_scale];
    ld.param.u64 %src, [p_src];
    cvta.to.global.u64 %src, %src;
    div.u32 %from, %i, %times;
    mad.wide.u32 %at, %from, 4, %src;
    ld.global.u32 %value, [%at];
    mul.lo.u32 %value, %value, %scale;

    ld.param.u64 %bias, [p_bias];
    setp.eq.u64 %p2, %bias, 0;
    @%p2 bra STORE;
    cvta.to.global.u64 %bias, %bias;
    mad.wide.u32 %at, %i, 4, %bias;
    ld.global.u32 %more, [%at];
    add.u32 %value, %value, %more;
STORE:
    ld.param.u64 %dst, [p_dst];
    cvta.to.global.u64 %dst, %dst;
    mad.wide.u32 %at, %i, 4, %dst;
    st.global.u32 [%at], %value;
    ret;
}

// dst[i] = scale * (src[i * times] + ... + src[i * times + times - 1]) + bias[i], for i < count.
// `lanes` threads share a sum: 1, or 32, the threads of one warp.
.visible .entry reduce(
    .param .u64 p_dst, .param .u64 p_src, .param .u64 p_bias,
    .param .u32 p_count, .param .u32 p_times, .param .u32 p_scale, .param .u32 p_lanes)
{
    .reg .pred %p<6>;
    .reg .b32 %i, %block, %threads, %thread, %count, %times, %scale, %lanes, %lane, %begin, %j;
    .reg .b32 %index, %sum, %more;
    .reg .b64 %dst, %src, %bias, %at;

    ld.param.u32 %count, [p_count];
    ld.param.u32 %lanes, [p_lanes];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %thread, %block, %threads, %thread;
    div.u32 %i, %thread, %lanes;
    rem.u32 %lane, %thread, %lanes;
    setp.ge.u32 %p1, %i, %count;
    @%p1 ret;

    ld.param.u32 %times, [p_times];
    ld.param.u64 %src, [p_src];
    cvta.to.global.u64 %src, %src;
    mul.lo.u32 %begin, %i, %times;
    mov.u32 %sum, 0;
    mov.u32 %j, %lane;
NEXT:
    setp.ge.u32 %p2, %j, %times;
    @%p2 bra SUMMED;
    add.u32 %index, %begin, %j;
    mad.wide.u32 %at, %index, 4, %src;
    ld.global.u32 %more, [%at];
    add.u32 %sum, %sum, %more;
    add.u32 %j, %j, %lanes;
    bra NEXT;
SUMMED:
    setp.eq.u32 %p3, %lanes, 1;
    @%p3 bra FINISH;
    shfl.sync.down.b32 %more, %sum, 16, 31, 0xffffffff;
    add.u32 %sum, %sum, %more;
    shfl.sync.down.b32 %more, %sum, 8, 31, 0xffffffff;
    add.u32 %sum, %sum, %more;
    shfl.sync.down.b32 %more, %sum, 4, 31, 0xffffffff;
    add.u32 %sum, %sum, %more;
    shfl.sync.down.b32 %more, %sum, 2, 31, 0xffffffff;
    add.u32 %sum, %sum, %more;
    shfl.sync.down.b32 %more, %sum, 1, 31, 0xffffffff;
    add.u32 %sum, %sum, %more;
    setp.ne.u32 %p4, %lane, 0;
    @%p4 ret;
FINISH:
    ld.param.u32 %scale, [p_scale];
    mul.lo.u32 %sum, %sum, %scale;
    ld.param.u64 %bias, [p_bias];
    setp.eq.u64 %p5, %bias, 0;
    @%p5 bra STORE;
    cvta.to.global.u64 %bias, %bias;
    mad.wide.u32 %at, %i, 4, %bias;
    ld.global.u32 %more, [%at];
    add.u32 %sum, %sum, %more;
STORE:
    ld.param.u64 %dst, [p_dst];
    cvta.to.global.u64 %dst, %dst;
    mad.wide.u32 %at, %i, 4, %dst;
    st.global.u32 [%at], %sum;
    ret;
}

// dst[c] += src[c] + src[columns + c] + ..., down the rows of a matrix. Each block of threads takes
// `chunk` rows, from ctaid.y * chunk on.
.visible .entry add_columns(
    .param .u64 p_dst, .param .u64 p_src, .param .u32 p_rows, .param .u32 p_columns,
    .param .u32 p_chunk)
{
    .reg .pred %p<3>;
    .reg .b32 %column, %columns, %row, %rows, %chunk, %end, %index, %sum, %more, %block, %threads;
    .reg .b64 %dst, %src, %at;

    ld.param.u32 %columns, [p_columns];
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mov.u32 %column, %tid.x;
    mad.lo.u32 %column, %block, %threads, %column;
    setp.ge.u32 %p1, %column, %columns;
    @%p1 ret;

    ld.param.u32 %rows, [p_rows];
    ld.param.u32 %chunk, [p_chunk];
    ld.param.u64 %src, [p_src];
    cvta.to.global.u64 %src, %src;
    mov.u32 %block, %ctaid.y;
    mul.lo.u32 %row, %block, %chunk;
    add.u32 %end, %row, %chunk;
    min.u32 %end, %end, %rows;
    mov.u32 %sum, 0;
NEXT:
    setp.ge.u32 %p2, %row, %end;
    @%p2 bra SUMMED;
    mad.lo.u32 %index, %row, %columns, %column;
    mad.wide.u32 %at, %index, 4, %src;
    ld.global.u32 %more, [%at];
    add.u32 %sum, %sum, %more;
    add.u32 %row, %row, 1;
    bra NEXT;
SUMMED:
    ld.param.u64 %dst, [p_dst];
    cvta.to.global.u64 %dst, %dst;
    mad.wide.u32 %at, %column, 4, %dst;
    red.global.add.u32 [%at], %sum;
    ret;
}
)ptx";

}  // namespace server
