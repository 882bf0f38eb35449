/* A test double for libnvinfer, libnvonnxparser and libnvinfer_plugin 10.x that sits UNDER the genuine
 * TensorRT Python bindings wheel (tensorrt_cu12_bindings 10.x).  build.sh compiles it once, under three names.
 *
 * It hands out real trt.Builder / OnnxParser / INetworkDefinition / IBuilderConfig / IOptimizationProfile /
 * IHostMemory objects, reads inputs, nodes and outputs of an ONNX file, and on build_serialized_network() with the
 * INT8 flag drives the Python calibrator through its genuine C++ trampoline: batch size, cache read, batches until
 * there are none, cache write.  Pointers are checked against, and batches are read back from, the fake CUDA driver
 * (fakecuda.c).
 *
 * The plan holds the inputs, the outputs and the profiles.  A real trt.Runtime deserializes it to a real ICudaEngine
 * and IExecutionContext, which check shapes against the profile, and addresses against the driver.  What the engine
 * computes is this, in double precision, and no more: element j of row r of every output is
 *
 *     (j + 1) * (sum of row r of all inputs)
 *
 * unless trtfake_set_executor() has been given a function that computes: it gets the ONNX file and the ranges that the
 * engine was built from, which are in the plan as well (tests/helpers/fakecuda/ortexec.py).
 *
 * The ranges that it writes are the largest |x| of each input, unless trtfake_set_calibrator() has been given a function
 * that finds ranges of all tensors: it gets each batch as TensorRT would read it, and at the end gives the cache's lines
 * (tests/helpers/fakecuda/ortcalibrate.py).
 *
 * A tensor that is no output of the file has the shape that its value_info says, which a function may be given to add
 * (trtfake_set_shapes), and without one none.  A dynamic axis of
 * an output other than the first is as long as that axis of the first input.  It computes in
 * enqueueV3(), once the work queued before it on that stream is done, and only where a CUDA context is current.
 *
 * Its decisions (order of calls, which cache it takes, its messages) are this file's, not TensorRT's: a test on
 * it shows that our code survives being driven, and nothing about TensorRT.  Where TensorRT's own conduct is
 * documented it is followed: the batch that counts is the network's static one, or the OPT shape of the
 * calibration profile (of the last profile, when none is set), never get_batch_size(); a cache of the same major
 * version and algorithm is taken.
 *
 * Virtual slots follow the order of the public header NvInferImpl.h; each one written here was checked by calling
 * its Python method.  A slot that is not written says so on stderr and returns 0.
 *
 *   TRTFAKE_ORDER=size|cache   batch size first, or cache first (documented nowhere: tests use both)
 *   TRTFAKE_WRITE_ON_HIT=1     hands a cache that was used back to write_calibration_cache()
 *   TRTFAKE_REFUSE=1           takes no cache and asks for batches
 *   TRTFAKE_FAIL=builder|network|config|parser|build|runtime|context|enqueue   that step returns NULL or false
 *   TRTFAKE_LOAD=version|device|plugin   the plan is refused, in TensorRT's words
 *   TRTFAKE_IO=host|layout|fp8|implicit   inputs and outputs are said to be such
 *   TRTFAKE_ROWS=1             outputs have a row only for rows whose sum is positive: their size depends on the data
 *   TRTFAKE_VERSION=101601     digits of the header that it writes
 *   TRTFAKE_UNNAMED=1          puts a reshape with an unnamed output before each Gemm, as the parser does
 *   TRTFAKE_LOG=1              a trace of calibrator calls on stderr
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum kind { K_BUILDER, K_NETWORK, K_CONFIG, K_PROFILE, K_TENSOR, K_LAYER, K_MEMORY, K_PARSER, K_RUNTIME, K_PERROR, K_TIMING, K_ENGINE, K_CONTEXT, K_INSPECTOR, K_N };
static const char *kname[] = { "IBuilder", "INetworkDefinition", "IBuilderConfig", "IOptimizationProfile", "ITensor", "ILayer", "IHostMemory", "IParser", "IRuntime", "IParserError", "ITimingCache", "ICudaEngine", "IExecutionContext", "IEngineInspector" };
typedef struct { int32_t nb; int64_t d[8]; } Dims;
typedef struct obj {                       /* the C++ object is [vt, impl]; impl is [ivt, ...] inside us */
    void **vt; void *impl; void **ivt; enum kind kind;
    void *logger; char name[256]; Dims dims; int type, is_out;
    struct obj *in[64], *out[64]; int nin, nout, nlayers;
    uint32_t flags; void *cal; struct obj *net; size_t pool[16]; struct obj *calprof, *lastprof, *timings; int nprof;
    struct obj *layer[256]; int ltype;     /* network: its layers; layer: its LayerType, in[] and out[] its tensors */
    char pname[16][256]; Dims pdims[16][3]; int np;   /* profile: MIN, OPT and MAX of each input */
    char *data; size_t size; char err[512];
    struct obj *profs[8], *engine; int profile;       /* config and engine: the profiles; context: engine, profile, and per tensor */
    unsigned long long addr[128]; void *alloc[128]; Dims set[128];
    char *model, *cache; size_t nmodel, ncache;       /* network and engine: the ONNX file, and the ranges */
} O;
static long live[K_N];
static const char *env(const char *n) { const char *e = getenv(n); return e ? e : ""; }
static int failing(const char *what) { return !strcmp(env("TRTFAKE_FAIL"), what); }
static O *make(enum kind k);
static char *copy_of(const void *p, size_t n) { char *c = malloc(n + 1); memcpy(c, p, n); c[n] = 0; return c; }
static void say(O *o, int sev, const char *m) {              /* ILogger: slot 0 = log(severity, text) */
    if (o->logger) ((void (*)(void *, int, const char *))(*(void ***)o->logger)[0])(o->logger, sev, m); }
#define TR(...) do { if (*env("TRTFAKE_LOG")) { fprintf(stderr, "[trtfake] " __VA_ARGS__); fputc('\n', stderr); } } while (0)

/* ------------------------------------------------ ONNX: graph inputs/outputs, nothing else --- */
typedef struct { const uint8_t *p, *e; } Buf;
static uint64_t varint(Buf *b) { uint64_t v = 0; for (int s = 0; b->p < b->e && s < 64; s += 7) { uint8_t c = *b->p++; v |= (uint64_t)(c & 127) << s; if (!(c & 128)) return v; } b->p = b->e + 1; return 0; }
static int field(Buf *b, int *num, uint64_t *val, Buf *sub) {  /* 1 = got a field, 0 = end, -1 = malformed */
    if (b->p == b->e) return 0;
    uint64_t t = varint(b); *num = t >> 3; *val = 0; sub->p = sub->e = 0;
    switch (t & 7) {
    case 0: *val = varint(b); break;
    case 1: b->p += 8; break;
    case 5: b->p += 4; break;
    case 2: { uint64_t n = varint(b); if (b->p > b->e || n > (uint64_t)(b->e - b->p)) return -1; sub->p = b->p; sub->e = b->p += n; break; }
    default: return -1;
    }
    return b->p <= b->e && *num ? 1 : -1; }
static int value_info(Buf b, O *t) {
    int n, r; uint64_t v; Buf s, s2, s3, s4;
    while ((r = field(&b, &n, &v, &s)) > 0) {
        if (n == 1) snprintf(t->name, sizeof t->name, "%.*s", (int)(s.e - s.p), s.p);
        else if (n == 2) while ((r = field(&s, &n, &v, &s2)) > 0) if (n == 1)              /* TypeProto.tensor_type */
            while ((r = field(&s2, &n, &v, &s3)) > 0) {
                static const int dt[] = { [1] = 0, [3] = 2, [6] = 3, [7] = 8, [9] = 4, [10] = 1 };   /* ONNX -> trt.DataType */
                if (n == 1) t->type = v < 11 ? dt[v] : 0;
                else if (n == 2) while ((r = field(&s3, &n, &v, &s4)) > 0) if (n == 1 && t->dims.nb < 8) {
                    int64_t d = -1; while ((r = field(&s4, &n, &v, &(Buf){ 0 })) > 0) if (n == 1) d = v;
                    t->dims.d[t->dims.nb++] = d; }
            }
    }
    return r; }
static O *tensor_named(O *net, const char *name) {
    for (int i = 0; i < net->nin; i++) if (!strcmp(net->in[i]->name, name)) return net->in[i];
    for (int k = 0; k < net->nlayers; k++) for (int j = 0; j < net->layer[k]->nout; j++)
        if (!strcmp(net->layer[k]->out[j]->name, name)) return net->layer[k]->out[j];
    return 0; }
static O *add_layer(O *net, int type, const char *name) {
    O *l = make(K_LAYER); l->ltype = type; snprintf(l->name, sizeof l->name, "%s", name);
    if (net->nlayers < 256) net->layer[net->nlayers++] = l;
    return l; }
/* One layer per node.  LayerType numbers are those of the 10.x enumeration. */
static void node(O *net, Buf b) {
    char in[16][256], out[16][256], op[64] = "", name[256] = ""; int ni = 0, no = 0, n; uint64_t v; Buf s;
    while (field(&b, &n, &v, &s) > 0) {
        int z = (int)(s.e - s.p);
        if (n == 1 && ni < 16) snprintf(in[ni++], 256, "%.*s", z, s.p);
        if (n == 2 && no < 16) snprintf(out[no++], 256, "%.*s", z, s.p);
        if (n == 3) snprintf(name, sizeof name, "%.*s", z, s.p);
        if (n == 4) snprintf(op, sizeof op, "%.*s", z, s.p);
    }
    static const struct { const char *op; int type; } types[] = { { "Conv", 0 }, { "Relu", 2 }, { "MaxPool", 3 }, { "Concat", 6 },
        { "Add", 9 }, { "Reshape", 13 }, { "Transpose", 13 }, { "Flatten", 13 }, { "Squeeze", 13 }, { "Constant", 19 }, { "Identity", 20 } };
    int type = 0; for (size_t i = 0; i < sizeof types / sizeof *types; i++) if (!strcmp(op, types[i].op)) type = types[i].type;
    O *first = ni ? tensor_named(net, in[0]) : 0;
    if (*env("TRTFAKE_UNNAMED") && !strcmp(op, "Gemm") && first) {
        O *l = add_layer(net, 13, ""), *t = make(K_TENSOR); snprintf(l->name, sizeof l->name, "(Unnamed Layer* %d) [Shuffle]", net->nlayers - 1);
        snprintf(t->name, sizeof t->name, "%.240s_output", l->name); l->in[l->nin++] = first; l->out[l->nout++] = first = t; }
    O *l = add_layer(net, type, name);
    for (int i = 0; i < ni; i++) { O *t = i ? tensor_named(net, in[i]) : first; if (t) l->in[l->nin++] = t; }
    for (int i = 0; i < no; i++) { O *t = make(K_TENSOR); snprintf(t->name, sizeof t->name, "%s", out[i]); l->out[l->nout++] = t; } }
/* A model and its bytes -> the same with the shapes of all tensors, for which TensorRT's parser needs no value_info. */
typedef const void *(*Shapes)(const void *model, size_t nmodel, size_t *n);
static Shapes infer;
void trtfake_set_shapes(Shapes f) { infer = f; }
static int onnx_scan(O *parser, const void *p, size_t size) {
    parser->net->model = copy_of(p, parser->net->nmodel = size);
    if (infer) p = infer(p, size, &size);
    O *net = parser->net; Buf m = { p, (const uint8_t *)p + size }, g, s, s2; int n, r, graphs = 0; uint64_t v;
    char inits[256][64]; int ni = 0;
    while ((r = field(&m, &n, &v, &g)) > 0) if (n == 7) {                                  /* ModelProto.graph */
        Buf b = g; graphs++;
        while ((r = field(&b, &n, &v, &s)) > 0) if (n == 5 && ni < 256)                   /* initializer names are no inputs */
            while (field(&s, &n, &v, &s2) > 0) if (n == 8) snprintf(inits[ni++], 64, "%.*s", (int)(s2.e - s2.p), s2.p);
        if (r < 0) break;
        for (b = g; (r = field(&b, &n, &v, &s)) > 0;) {
            if (n != 11) continue;
            O *t = make(K_TENSOR); if (value_info(s, t) < 0) { r = -1; break; }
            int skip = 0; for (int i = 0; i < ni; i++) skip |= !strcmp(inits[i], t->name);
            if (!skip && net->nin < 64) net->in[net->nin++] = t;
        }
        if (r < 0) break;
        for (b = g; (r = field(&b, &n, &v, &s)) > 0;) if (n == 1) node(net, s);
        for (b = g; r >= 0 && (r = field(&b, &n, &v, &s)) > 0;) if (n == 13) {                  /* value_info: what layers give */
            O seen = { .nin = 0 }, *t; if (value_info(s, &seen) < 0) { r = -1; break; }
            if ((t = tensor_named(net, seen.name))) { t->dims = seen.dims; t->type = seen.type; } }
        for (b = g; r >= 0 && (r = field(&b, &n, &v, &s)) > 0;) if (n == 12 && net->nout < 64) {
            O seen = { .nin = 0 }, *t; if (value_info(s, &seen) < 0) { r = -1; break; }
            if (!(t = tensor_named(net, seen.name))) { t = make(K_TENSOR); memcpy(t->name, seen.name, sizeof t->name); }
            t->dims = seen.dims; t->type = seen.type; t->is_out = 1; net->out[net->nout++] = t; }
        if (r < 0) break;
    }
    if (r < 0 || !graphs || !net->nout) { snprintf(parser->err, sizeof parser->err, "trtfake: not an ONNX model with a graph"); return 0; }
    return 1; }

/* -------------------------------------------------------------------- calibration --- */
/* A batch: its number, shapes and data -> 0.  At the end: -1, the legacy calibrator's quantile, and room for the lines of
 * the cache -> their bytes.  Anything below 0 is a failure. */
typedef int (*Ranges)(const void *model, size_t nmodel, const char *algorithm, int batch, const Dims *shapes, void **data, double quantile, char *text, size_t room);
static Ranges ranges;
void trtfake_set_calibrator(Ranges f) { ranges = f; }
typedef int (*CuRange)(unsigned long long *, size_t *, unsigned long long);
typedef int (*CuD2H)(void *, unsigned long long, size_t);
static size_t esize(int t) { static const size_t s[] = { 4, 2, 1, 4, 1, 1, 1, 2, 8, 1 }; return t < 10 ? s[t] : 4; }
/* Like TensorRT, works in the primary context of device 0, and only while it calibrates -> handle of the driver library. */
static void *cuda_context(int enter) {
    void *h = dlopen("libcuda.so.1", RTLD_LAZY), *ctx = 0; if (!h) return 0;
    int (*init)(unsigned) = dlsym(h, "cuInit"), (*retain)(void **, int) = dlsym(h, "cuDevicePrimaryCtxRetain"), (*release)(int) = dlsym(h, "cuDevicePrimaryCtxRelease_v2");
    int (*push)(void *) = dlsym(h, "cuCtxPushCurrent_v2"), (*pop)(void **) = dlsym(h, "cuCtxPopCurrent_v2");
    if (!enter) { pop(&ctx); release(0); return h; }
    return init(0) || retain(&ctx, 0) || push(ctx) ? 0 : h; }
static int calibrate_(O *b, O *net, O *cfg, void *cuda) {
    void *c = cfg->cal, **vt = *(void ***)c + 4;                      /* 10.x: IVersionedInterface has 0..3 */
    int32_t (*batch_size)(void *) = vt[0]; _Bool (*get_batch)(void *, void **, const char **, int32_t) = vt[1];
    const void *(*rd)(void *, size_t *) = vt[2]; void (*wr)(void *, const void *, size_t) = vt[3]; int32_t (*alg)(void *) = vt[4];
    static const char *algs[] = { "LegacyCalibration", "EntropyCalibration", "EntropyCalibration2", "MinMaxCalibration" };
    char head[64], msg[512]; int32_t a = alg(c), bs = 0; size_t len = 0; const void *cache;
    const char *alg_name = a >= 0 && a < 4 ? algs[a] : "?";
    snprintf(head, sizeof head, "TRT-%s-%s\n", *env("TRTFAKE_VERSION") ? env("TRTFAKE_VERSION") : "101601", alg_name);
    int cache_first = !strcmp(env("TRTFAKE_ORDER"), "cache");
    if (!cache_first) { bs = batch_size(c); TR("getBatchSize -> %d", bs); }
    cache = rd(c, &len); TR("readCalibrationCache -> %p, %zu", cache, len);
    if (cache && len) {
        char got[64] = ""; int digits = 0;
        snprintf(got, sizeof got, "%.*s", len < 60 ? (int)len : 60, (const char *)cache);
        char *dash = sscanf(got, "TRT-%d-", &digits) == 1 ? strchr(got + 4, '-') : 0;
        int fits = dash && digits / 10000 == atoi(strchr(head, '-') + 1) / 10000 && !strncmp(dash + 1, alg_name, strlen(alg_name)) && dash[1 + strlen(alg_name)] == '\n';
        if (fits && !*env("TRTFAKE_REFUSE")) {
            say(b, 3, "trtfake: using calibration cache, no batches"); net->cache = copy_of(cache, net->ncache = len);
            if (*env("TRTFAKE_WRITE_ON_HIT")) { char *cp = malloc(len); memcpy(cp, cache, len); wr(c, cp, len); free(cp); }
            return 1; }
        say(b, 2, "trtfake: calibration cache is for another version or algorithm; calibrating"); }
    if (cache_first) { bs = batch_size(c); TR("getBatchSize -> %d", bs); }
    if (bs < 1) { say(b, 1, "trtfake: calibrator batch size is not positive"); return 0; }
    const char *names[64]; void *ptr[64]; double amax[64] = { 0 }; int batches = 0, n = net->nin, true_batch = 0;
    CuRange range = cuda ? (CuRange)dlsym(cuda, "cuMemGetAddressRange_v2") : 0; CuD2H d2h = cuda ? (CuD2H)dlsym(cuda, "cuMemcpyDtoH_v2") : 0;
    for (;;) {
        for (int i = 0; i < n; i++) { names[i] = net->in[i]->name; ptr[i] = 0; }
        _Bool ok = get_batch(c, ptr, names, n); TR("getBatch #%d -> %d", batches, ok);
        if (!ok) break;
        batches++;
        void *held[64] = { 0 }; Dims shapes[64];
        for (int i = 0; i < n; i++) {
            O *t = net->in[i], *prof = cfg->calprof ? cfg->calprof : cfg->lastprof; size_t vol = 1; Dims d = t->dims;
            for (int j = 0; prof && j < prof->np; j++) if (!strcmp(prof->pname[j], t->name)) d = prof->pdims[j][1];
            for (int k = 0; k < d.nb; k++) vol *= d.d[k] < 0 ? 1 : d.d[k];
            if (!i && d.nb) true_batch = (int)d.d[0];
            size_t need = vol * esize(t->type), have = 0; unsigned long long base = 0, q = (uintptr_t)ptr[i];
            if (!q) { snprintf(msg, sizeof msg, "trtfake: calibrator gave no pointer for input %s", t->name); say(b, 1, msg); return 0; }
            if (range && (range(&base, &have, q) || q - base + need > have)) {
                snprintf(msg, sizeof msg, "trtfake: binding %s=%#llx is not %zu bytes of live device memory", t->name, q, need); say(b, 1, msg); return 0; }
            float *f = calloc(1, need + 1); held[i] = f; shapes[i] = d; if (range) d2h(f, q, need);
            if (range && t->type <= 1)                                     /* float inputs are calibrated in float32 */
                for (size_t k = 0; k < vol; k++) if (fabsf(f[k]) > amax[i]) amax[i] = fabsf(f[k]);
        }
        int failed = ranges && ranges(net->model, net->nmodel, alg_name, batches - 1, shapes, held, 0, 0, 0) < 0;
        for (int i = 0; i < n; i++) free(held[i]);
        if (failed) { say(b, 1, "trtfake: the calibrator's function failed"); return 0; }
    }
    snprintf(msg, sizeof msg, "trtfake: calibrated with %d batches of %d", batches, true_batch); say(b, 3, msg);
    if (!batches) { say(b, 1, "trtfake: calibration failure: no batches"); return 0; }
    static char out[1 << 20]; int u = snprintf(out, sizeof out, "%s", head), more = 0;
    if (ranges) {                                                         /* 5: getQuantile, of the legacy calibrator alone */
        double quantile = a ? 0 : ((double (*)(void *))vt[5])(c);
        if ((more = ranges(net->model, net->nmodel, alg_name, -1, 0, 0, quantile, out + u, sizeof out - u)) < 0) { say(b, 1, "trtfake: the calibrator's function failed"); return 0; }
        u += more; }
    else for (int i = 0; i < n; i++) { float s = amax[i] / 127; uint32_t x; memcpy(&x, &s, 4); u += snprintf(out + u, sizeof out - u, "%s: %x\n", net->in[i]->name, x); }
    net->cache = copy_of(out, net->ncache = u); wr(c, out, u); TR("writeCalibrationCache %d bytes", u);
    return 1; }

static int calibrate(O *b, O *net, O *cfg) {
    void *cuda = cuda_context(1); int done = calibrate_(b, net, cfg, cuda);
    if (cuda) cuda_context(0);
    return done; }

/* ------------------------------------------------------------------- plans and engines --- */
static int put(char **p, char *end, const char *f, long long v) { *p += snprintf(*p, end - *p, f, v); return 0; }
static void put_dims(char **p, char *end, Dims d) { put(p, end, " %lld", d.nb); for (int k = 0; k < d.nb; k++) put(p, end, " %lld", d.d[k]); }
static Dims profile_dims(O *prof, O *t, int select) {
    for (int j = 0; prof && j < prof->np; j++) if (!strcmp(prof->pname[j], t->name)) return prof->pdims[j][select];
    return t->dims; }
static O *plan_of(O *net, O *cfg) {         /* a header; a line per tensor: kind type shape {profile shapes} name; sizes; model, ranges */
    O *m = make(K_MEMORY); size_t room = (1 << 16) + net->nmodel + net->ncache; char *p = m->data = calloc(1, room), *end = p + room;
    p += snprintf(p, end - p, "TRTFAKE-PLAN inputs=%d outputs=%d flags=%#x profiles=%d\n", net->nin, net->nout, cfg->flags, cfg->nprof);
    for (int i = 0; i < net->nin + net->nout; i++) {
        int in = i < net->nin; O *t = in ? net->in[i] : net->out[i - net->nin];
        put(&p, end, in ? "I %lld" : "O %lld", t->type); put_dims(&p, end, t->dims);
        for (int k = 0; in && k < cfg->nprof && k < 8; k++) for (int s = 0; s < 3; s++) put_dims(&p, end, profile_dims(cfg->profs[k], t, s));
        p += snprintf(p, end - p, " %s\n", t->name); }
    p += snprintf(p, end - p, "%zu %zu\n", net->nmodel, net->ncache);
    if (net->nmodel) memcpy(p, net->model, net->nmodel);
    if (net->ncache) memcpy(p + net->nmodel, net->cache, net->ncache);
    p += net->nmodel + net->ncache;
    m->size = p - m->data; return m; }
static Dims get_dims(char **p) { Dims d = { 0 }; d.nb = strtol(*p, p, 10); for (int k = 0; k < d.nb && k < 8; k++) d.d[k] = strtoll(*p, p, 10); return d; }
static O *load(O *runtime, const char *blob, size_t size) {
    static const char *words[][2] = {
        { "version", "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 239, Serialized Engine Version: 213)" },
        { "device", "6: The engine plan file is generated on an incompatible device, expecting compute 9.0 got compute 8.6, please rebuild." },
        { "plugin", "IPluginRegistry::getCreator: Error Code 4: API Usage Error (Cannot find plugin: Mine, version: 1, namespace:.)" } };
    for (int k = 0; k < 3; k++) if (!strcmp(env("TRTFAKE_LOAD"), words[k][0])) { say(runtime, 1, words[k][1]); say(runtime, 1, "4: [runtime.cpp::deserializeCudaEngine::66] Error Code 4: Internal Error (Engine deserialization failed.)"); return 0; }
    int nin, nout, nprof, used = 0; unsigned flags; char *text = copy_of(blob, size), *p = text;
    if (sscanf(p, "TRTFAKE-PLAN inputs=%d outputs=%d flags=%x profiles=%d\n%n", &nin, &nout, &flags, &nprof, &used) != 4 || !used) {
        say(runtime, 1, "1: [runtime.cpp::parsePlan::314] Error Code 1: Serialization (Serialization assertion plan->header.magicTag == rt::kPLAN_MAGIC_TAG failed.)"); free(text); return 0; }
    O *e = make(K_ENGINE); e->flags = flags; e->nprof = nprof; e->logger = runtime->logger; p += used;
    for (int k = 0; k < nprof; k++) e->profs[k] = make(K_PROFILE);
    for (int i = 0; i < nin + nout; i++) {
        O *t = make(K_TENSOR); int in = *p++ == 'I'; t->type = strtol(p, &p, 10); t->dims = get_dims(&p); t->is_out = !in;
        for (int k = 0; in && k < nprof; k++) { O *f = e->profs[k]; for (int s = 0; s < 3; s++) f->pdims[f->np][s] = get_dims(&p); }
        char *stop = strchr(p, '\n'); if (!stop) { say(runtime, 1, "trtfake: the plan ends early"); free(text); return 0; }
        snprintf(t->name, sizeof t->name, "%.*s", (int)(stop - p - 1), p + 1); p = stop + 1;
        for (int k = 0; in && k < nprof; k++) { O *f = e->profs[k]; snprintf(f->pname[f->np++], 256, "%s", t->name); }
        if (in) e->in[e->nin++] = t; else e->out[e->nout++] = t; }
    if (sscanf(p, "%zu %zu\n%n", &e->nmodel, &e->ncache, &used) != 2 || p + used + e->nmodel + e->ncache != text + size) { say(runtime, 1, "trtfake: the plan ends early"); free(text); return 0; }
    e->model = copy_of(p + used, e->nmodel); e->cache = copy_of(p + used + e->nmodel, e->ncache);
    free(text); return e; }
static int io_index(O *e, const char *name) {
    for (int i = 0; i < e->nin + e->nout; i++) if (!strcmp((i < e->nin ? e->in[i] : e->out[i - e->nin])->name, name)) return i;
    return -1; }
static O *io_at(O *e, int i) { return i < 0 || i >= e->nin + e->nout ? 0 : i < e->nin ? e->in[i] : e->out[i - e->nin]; }
static int is_dynamic(Dims d) { for (int k = 0; k < d.nb; k++) if (d.d[k] < 0) return 1; return 0; }
static Dims context_shape(O *c, int i) {                     /* of a tensor, for the input shapes that are set */
    O *e = c->engine, *t = io_at(e, i); Dims none = { .nb = -1 }; if (!t) return none;
    if (i < e->nin) return c->set[i].nb > 0 ? c->set[i] : t->dims;
    Dims d = t->dims, first = context_shape(c, 0);
    for (int k = 0; k < d.nb; k++) if (d.d[k] < 0 && k < first.nb && !(k == 0 && *env("TRTFAKE_ROWS"))) d.d[k] = first.d[k];
    return d; }
static int set_shape(O *c, const char *name, Dims d) {
    O *e = c->engine; int i = io_index(e, name); char msg[512]; if (i < 0 || i >= e->nin) return 0;
    O *t = e->in[i]; int fits = d.nb == t->dims.nb;
    Dims lo = profile_dims(e->profs[c->profile], t, 0), hi = profile_dims(e->profs[c->profile], t, 2);
    for (int k = 0; fits && k < d.nb; k++) fits = t->dims.d[k] < 0 ? d.d[k] >= lo.d[k] && d.d[k] <= hi.d[k] : d.d[k] == t->dims.d[k];
    if (!fits) { snprintf(msg, sizeof msg, "IExecutionContext::setInputShape: Error Code 3: API Usage Error (trtfake: %s does not satisfy profile %d)", name, c->profile); say(e, 1, msg); return 0; }
    c->set[i] = d; return 1; }
static double read_as(const char *p, int type, size_t k) {
    switch (type) { case 0: return ((float *)p)[k]; case 1: return (double)((_Float16 *)p)[k]; case 2: return ((int8_t *)p)[k]; case 3: return ((int32_t *)p)[k];
    case 4: return ((uint8_t *)p)[k] != 0; case 5: return ((uint8_t *)p)[k]; case 8: return (double)((int64_t *)p)[k]; } return 0; }
static void write_as(char *p, int type, size_t k, double v) {
    switch (type) { case 0: ((float *)p)[k] = (float)v; break; case 1: ((_Float16 *)p)[k] = (_Float16)v; break; case 2: ((int8_t *)p)[k] = (int8_t)v; break;
    case 3: ((int32_t *)p)[k] = (int32_t)v; break; case 4: case 5: ((uint8_t *)p)[k] = type == 4 ? v != 0 : (uint8_t)v; break; case 8: ((int64_t *)p)[k] = (int64_t)v; } }
static size_t volume(Dims d, int from) { size_t n = 1; for (int k = from; k < d.nb; k++) n *= d.d[k]; return n; }
typedef int (*Executor)(const void *model, size_t nmodel, const void *ranges, size_t nranges, const Dims *shapes, void **in, const char **names, const size_t *bytes, int nout, void **out);
static Executor executor;
void trtfake_set_executor(Executor f) { executor = f; }
static int run(O *c, void *stream) {
    O *e = c->engine; char msg[512]; void *h = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD), *ctx = 0;
    if (failing("enqueue")) { say(e, 1, "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)"); return 0; }
    if (!h) { say(e, 1, "trtfake: no CUDA driver is loaded"); return 0; }
    int (*now)(void **) = dlsym(h, "cuCtxGetCurrent"), (*wait)(void *) = dlsym(h, "cuStreamSynchronize"); CuRange range = (CuRange)dlsym(h, "cuMemGetAddressRange_v2");
    int (*d2h)(void *, unsigned long long, size_t) = dlsym(h, "cuMemcpyDtoH_v2"), (*h2d)(unsigned long long, const void *, size_t) = dlsym(h, "cuMemcpyHtoD_v2");
    if (now(&ctx) || !ctx) { say(e, 1, "trtfake: no CUDA context is current"); return 0; }
    if (wait(stream)) { say(e, 1, "trtfake: not a stream of the current context"); return 0; }
    size_t rows = 0, kept = 0; double *sums = 0; void *host[128] = { 0 }; size_t bytes[128] = { 0 }; Dims shapes[64]; int failed = 0;
    for (int i = 0; i < e->nin; i++) {
        Dims d = context_shape(c, i); unsigned long long base = 0; size_t have = 0;
        if (is_dynamic(d)) { snprintf(msg, sizeof msg, "IExecutionContext::enqueueV3: Error Code 3: API Usage Error (trtfake: the shape of %s is not set)", e->in[i]->name); say(e, 1, msg); return 0; }
        size_t row = volume(d, 1), need = volume(d, 0) * esize(e->in[i]->type); if (!sums) { rows = d.d[0]; sums = calloc(rows + 1, sizeof *sums); }
        if (need && (range(&base, &have, c->addr[i]) || c->addr[i] - base + need > have)) { snprintf(msg, sizeof msg, "trtfake: %s=%#llx is not %zu bytes of device memory", e->in[i]->name, c->addr[i], need); say(e, 1, msg); return 0; }
        char *p = malloc(need + 1); if (need) d2h(p, c->addr[i], need);
        for (size_t r = 0; r < rows; r++) for (size_t k = 0; k < row; k++) sums[r] += read_as(p, e->in[i]->type, r * row + k);
        host[i] = p; shapes[i] = d; }
    if (*env("TRTFAKE_ROWS")) { for (size_t r = 0; r < rows; r++) if (sums[r] > 0) sums[kept++] = sums[r]; rows = kept; }
    for (int i = e->nin; i < e->nin + e->nout; i++) {
        O *t = io_at(e, i); Dims d = context_shape(c, i); unsigned long long base = 0; size_t have = 0; if (d.nb && d.d[0] < 0) d.d[0] = rows;
        size_t row = volume(d, 1), out = d.nb ? d.d[0] : 1, need = out * row * esize(t->type);
        if (c->alloc[i]) {                                           /* 10.x: slots 0..3 are IVersionedInterface's */
            void **vt = *(void ***)c->alloc[i] + 4; void *(*again)(void *, const char *, void *, uint64_t, uint64_t, void *) = vt[1]; void (*tell)(void *, const char *, const Dims *) = vt[2];
            c->addr[i] = (uintptr_t)again(c->alloc[i], t->name, (void *)(uintptr_t)c->addr[i], need, 256, stream); tell(c->alloc[i], t->name, &d); }
        if (need && (range(&base, &have, c->addr[i]) || c->addr[i] - base + need > have)) { snprintf(msg, sizeof msg, "trtfake: %s=%#llx is not %zu bytes of device memory", t->name, c->addr[i], need); say(e, 1, msg); return 0; }
        char *p = calloc(1, need + 1);
        for (size_t r = 0; r < out && r < rows; r++) for (size_t j = 0; j < row; j++) write_as(p, t->type, r * row + j, (double)(j + 1) * sums[r]);
        host[i] = p; bytes[i] = need; }
    const char *names[128]; for (int i = 0; i < e->nout; i++) names[i] = e->out[i]->name;
    if (executor) failed = executor(e->model, e->nmodel, e->cache, e->ncache, shapes, host, names, bytes + e->nin, e->nout, host + e->nin);
    if (failed) say(e, 1, "trtfake: the executor failed");
    for (int i = 0; i < e->nin + e->nout; i++) { if (bytes[i] && !failed) h2d(c->addr[i], host[i], bytes[i]); free(host[i]); }
    free(sums); return !failed; }

/* ----------------------------------------------------------------------- dispatch --- */
static O *self_of(void *p, enum kind k, int inner) { (void)k; return inner ? (O *)((char *)p - offsetof(O, ivt)) : p; }
struct slot { enum kind k; int inner, n; };
#define AT(k, inner, n) (((k) << 12) | ((inner) << 11) | (n))
#define I(k, n) AT(k, 1, n)
#define S(x) AT(x, 0, 1)
__attribute__((used)) long trtfake_c(struct slot *s, void **a) {
    /* functions returning a struct get the result address first and the object second */
    switch (AT(s->k, s->inner, s->n)) {
    case I(K_TENSOR, 5): *(Dims *)a[0] = self_of(a[1], s->k, 1)->dims; return (long)a[0];
    case I(K_PROFILE, 3): {                                                         /* getDimensions(name, MIN|OPT|MAX) */
        O *p = self_of(a[1], s->k, 1); memset(a[0], 0, sizeof(Dims)); ((Dims *)a[0])->nb = -1;
        for (int j = 0; j < p->np; j++) if (!strcmp(p->pname[j], (char *)a[2])) *(Dims *)a[0] = p->pdims[j][(int)(intptr_t)a[3] % 3];
        return (long)a[0]; }
    case I(K_ENGINE, 19): { O *e = self_of(a[1], s->k, 1), *x = io_at(e, io_index(e, a[2])); if (x) *(Dims *)a[0] = x->dims; else ((Dims *)a[0])->nb = -1; return (long)a[0]; }
    case I(K_ENGINE, 29): {                                                         /* getProfileShape(name, profile, MIN|OPT|MAX) */
        O *e = self_of(a[1], s->k, 1); int x = io_index(e, a[2]); long n = (int)(intptr_t)a[3];
        if (x < 0 || x >= e->nin || n >= (e->nprof ? e->nprof : 1)) ((Dims *)a[0])->nb = -1; else *(Dims *)a[0] = profile_dims(e->profs[n], e->in[x], (int)(intptr_t)a[4]);
        return (long)a[0]; }
    case I(K_CONTEXT, 22): { O *c = self_of(a[1], s->k, 1); *(Dims *)a[0] = context_shape(c, io_index(c->engine, a[2])); return (long)a[0]; }
    }
    O *o = self_of(a[0], s->k, s->inner), *t; uintptr_t i = (uintptr_t)a[1];
    switch (AT(s->k, s->inner, s->n)) {
    case S(K_BUILDER): case S(K_NETWORK): case S(K_CONFIG): case S(K_PROFILE): case S(K_MEMORY): case S(K_RUNTIME): case S(K_TIMING):   /* delete */
    case S(K_ENGINE): case S(K_CONTEXT): case S(K_INSPECTOR):
        live[o->kind]--; o->vt = 0; return 0;
    case I(K_BUILDER, 2): case I(K_BUILDER, 3): case I(K_BUILDER, 15): return 1;
    case I(K_BUILDER, 7): return failing("config") ? 0 : (long)make(K_CONFIG);
    case I(K_BUILDER, 8): if (failing("network")) return 0; t = make(K_NETWORK); t->flags = i; t->logger = o->logger; return (long)t;
    case I(K_BUILDER, 9): return (long)make(K_PROFILE);
    case I(K_BUILDER, 14): {                                                        /* buildSerializedNetwork(network, config) */
        O *net = a[1], *cfg = a[2];
        if (!net->nout) { say(o, 1, "trtfake: network has no outputs"); return 0; }
        if ((cfg->flags >> 1 & 1) && cfg->cal && !calibrate(o, net, cfg)) return 0;
        if (failing("build")) { say(o, 1, "trtfake: injected build failure"); return 0; }
        return (long)plan_of(net, cfg); }
    case I(K_BUILDER, 16): return (long)o->logger;
    case I(K_NETWORK, 2): t = make(K_TENSOR); snprintf(t->name, sizeof t->name, "%s", (char *)a[1]); t->type = (int)(intptr_t)a[2]; t->dims = *(Dims *)a[3]; if (o->nin < 64) o->in[o->nin++] = t; return (long)t;
    case I(K_NETWORK, 3): ((O *)a[1])->is_out = 1; if (o->nout < 64) o->out[o->nout++] = a[1]; return 0;
    case I(K_NETWORK, 12): return o->nlayers;
    case I(K_NETWORK, 13): return i < (uintptr_t)o->nlayers ? (long)o->layer[i] : 0;
    case I(K_NETWORK, 14): return o->nin;
    case I(K_NETWORK, 15): return i < (uintptr_t)o->nin ? (long)o->in[i] : 0;
    case I(K_NETWORK, 16): return o->nout;
    case I(K_NETWORK, 17): return i < (uintptr_t)o->nout ? (long)o->out[i] : 0;
    case I(K_NETWORK, 26): {                                                        /* unmarkOutput */
        int kept = 0; for (int k = 0; k < o->nout; k++) if (o->out[k] != a[1]) o->out[kept++] = o->out[k];
        o->nout = kept; ((O *)a[1])->is_out = 0; return 0; }
    case I(K_NETWORK, 31): return (long)"trtfake";
    case I(K_NETWORK, 64): return o->flags;
    case I(K_NETWORK, 65): return o->flags >> i & 1;
    case I(K_TENSOR, 2): snprintf(o->name, sizeof o->name, "%s", (char *)a[1]); return 0;
    case I(K_TENSOR, 3): return (long)o->name;
    case I(K_TENSOR, 4): o->dims = *(Dims *)a[1]; return 0;
    case I(K_TENSOR, 7): return o->type;
    case I(K_TENSOR, 9): return !o->is_out;
    case I(K_TENSOR, 10): return o->is_out;
    case I(K_TENSOR, 21): return 0;                                                /* isShapeTensor */
    case I(K_TENSOR, 22): return 1;
    case I(K_CONFIG, 6): o->cal = a[1]; return 0;
    case I(K_CONFIG, 7): return (long)o->cal;
    case I(K_CONFIG, 8): o->flags = i; return 0;
    case I(K_CONFIG, 9): return o->flags;
    case I(K_CONFIG, 10): o->flags &= ~(1u << i); return 0;
    case I(K_CONFIG, 11): o->flags |= 1u << i; return 0;
    case I(K_CONFIG, 12): return o->flags >> i & 1;
    case I(K_CONFIG, 25): o->lastprof = a[1]; if (o->nprof < 8) o->profs[o->nprof] = a[1]; return o->nprof++;
    case I(K_CONFIG, 26): return o->nprof;
    case I(K_CONFIG, 31): o->calprof = a[1]; return 1;
    case I(K_CONFIG, 32): return (long)o->calprof;
    case I(K_CONFIG, 40): t = make(K_TIMING); o->timings = t; return (long)t;       /* createTimingCache(blob, size) */
    case I(K_CONFIG, 41): o->timings = a[1]; return 1;                              /* setTimingCache */
    case I(K_CONFIG, 42): return (long)o->timings;
    case I(K_TIMING, 2): t = make(K_MEMORY); t->size = asprintf(&t->data, "TRTFAKE-TIMINGS\n"); return (long)t;
    case I(K_CONFIG, 43): o->pool[i & 15] = (size_t)a[2]; return 0;
    case I(K_CONFIG, 44): return o->pool[i & 15];
    case I(K_CONFIG, 27): case I(K_CONFIG, 36): case I(K_CONFIG, 47): return 0;         /* verbosity, quantization flags, level */
    case I(K_PROFILE, 2): {                                                         /* setDimensions(name, MIN|OPT|MAX, dims) */
        int j = 0; while (j < o->np && strcmp(o->pname[j], (char *)a[1])) j++;
        if (j == 16) return 0;
        if (j == o->np) snprintf(o->pname[o->np++], 256, "%s", (char *)a[1]);
        o->pdims[j][(int)(intptr_t)a[2] % 3] = *(Dims *)a[3]; return 1; }
    case I(K_PROFILE, 9): return 1;
    case I(K_LAYER, 2): return o->ltype;
    case I(K_LAYER, 3): snprintf(o->name, sizeof o->name, "%s", (char *)a[1]); return 0;
    case I(K_LAYER, 4): return (long)o->name;
    case I(K_LAYER, 5): return o->nin;
    case I(K_LAYER, 6): return i < (uintptr_t)o->nin ? (long)o->in[i] : 0;
    case I(K_LAYER, 7): return o->nout;
    case I(K_LAYER, 8): return i < (uintptr_t)o->nout ? (long)o->out[i] : 0;
    case I(K_MEMORY, 2): return (long)o->data;
    case I(K_MEMORY, 3): return o->size;
    case I(K_MEMORY, 4): return 2;                                                  /* kINT8: bytes */

    case I(K_RUNTIME, 3): return (long)load(o, (char *)a[1], (size_t)a[2]);
    case I(K_RUNTIME, 11): return (long)o->logger;
    case I(K_ENGINE, 5): if (failing("context")) { say(o, 1, "trtfake: injected failure of the context"); return 0; } t = make(K_CONTEXT); t->engine = o; return (long)t;
    case I(K_ENGINE, 10): return o->nprof ? o->nprof : 1;
    case I(K_ENGINE, 15): return !strcmp(env("TRTFAKE_IO"), "implicit");
    case I(K_ENGINE, 18): t = make(K_INSPECTOR); t->engine = o; return (long)t;
    case I(K_ENGINE, 20): t = io_at(o, io_index(o, (char *)a[1])); return !t ? 0 : !strcmp(env("TRTFAKE_IO"), "fp8") ? 6 : t->type;
    case I(K_ENGINE, 21): return !strcmp(env("TRTFAKE_IO"), "host");                                /* kDEVICE, kHOST */
    case I(K_ENGINE, 22): return 0;
    case I(K_ENGINE, 23): t = io_at(o, io_index(o, (char *)a[1])); return !t ? 0 : t->is_out ? 2 : 1;    /* kNONE, kINPUT, kOUTPUT */
    case I(K_ENGINE, 26): return !strcmp(env("TRTFAKE_IO"), "layout") ? 5 : 0;                            /* kLINEAR, kCHW32 */
    case I(K_ENGINE, 30): return o->nin + o->nout;
    case I(K_ENGINE, 31): t = io_at(o, (int)i); return t ? (long)t->name : 0;
    case I(K_INSPECTOR, 6): free(o->data); if (asprintf(&o->data, "{\"Layers\": [{\"Name\": \"trtfake\", \"Outputs\": [{\"Format/Datatype\": \"Row major linear %s format\"}]}]}",
        o->engine->flags >> 1 & 1 ? "Int8" : o->engine->flags & 1 ? "FP16" : "FP32") < 0) return 0; return (long)o->data;
    case I(K_CONTEXT, 11): return o->profile;
    case I(K_CONTEXT, 17): if ((int)i < 0 || (int)i >= (o->engine->nprof ? o->engine->nprof : 1)) return 0; o->profile = (int)i; memset(o->set, 0, sizeof o->set); return 1;
    case I(K_CONTEXT, 21): return set_shape(o, (char *)a[1], *(Dims *)a[2]);
    case I(K_CONTEXT, 24): { int x = io_index(o->engine, (char *)a[1]); if (x < 0) return 0; o->addr[x] = (uintptr_t)a[2]; return 1; }
    case I(K_CONTEXT, 32): { int x = io_index(o->engine, (char *)a[1]); if (x < o->engine->nin) return 0; o->alloc[x] = a[2]; return 1; }
    case I(K_CONTEXT, 37): return run(o, a[1]);

    case AT(K_PARSER, 0, 9): live[K_PARSER]--; return 0;                             /* delete */
    case AT(K_PARSER, 0, 0): return onnx_scan(o, a[1], (size_t)a[2]);
    case AT(K_PARSER, 0, 5): return *o->err != 0;
    case AT(K_PARSER, 0, 6): t = make(K_PERROR); memcpy(t->err, o->err, sizeof t->err); return (long)t;
    case AT(K_PARSER, 0, 7): *o->err = 0; return 0;
    case AT(K_PARSER, 0, 4): case AT(K_PARSER, 0, 14): case AT(K_PARSER, 0, 12): case AT(K_PARSER, 0, 13): return 1;
    case AT(K_PERROR, 0, 0): return 1;
    case AT(K_PERROR, 0, 1): return (long)o->err;
    case AT(K_PERROR, 0, 2): case AT(K_PERROR, 0, 4): return (long)"trtfake";
    case AT(K_PERROR, 0, 3): case AT(K_PERROR, 0, 5): return 0;
    }
    if (s->k == K_PARSER && !s->inner && s->n == 1) {                                 /* parseFromFile(path, verbosity) */
        FILE *f = fopen((char *)a[1], "rb"); if (!f) { snprintf(o->err, sizeof o->err, "trtfake: cannot open %s", (char *)a[1]); return 0; }
        fseek(f, 0, SEEK_END); long z = ftell(f); rewind(f); void *b = malloc(z + 1); z = fread(b, 1, z, f); fclose(f);
        long r = onnx_scan(o, b, z); free(b); return r; }
    fprintf(stderr, "trtfake: %s%s slot %d not written, returns 0\n", kname[s->k], s->inner ? " impl" : "", s->n);
    return 0; }
__asm__(".text\ntrtfake_entry:\n push %r9\n push %r8\n push %rcx\n push %rdx\n push %rsi\n push %rdi\n"
        " mov %rax,%rdi\n mov %rsp,%rsi\n sub $8,%rsp\n call trtfake_c@PLT\n add $56,%rsp\n ret\n");
extern void trtfake_entry(void);
static void **vtable(enum kind k, int inner) {                   /* thunk: mov rax, slot ; mov r11, entry ; jmp r11 */
    enum { N = 120 }; static void **tabs[K_N][2];
    if (tabs[k][inner]) return tabs[k][inner];
    unsigned char *p = mmap(0, N * 32, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void **t = (void **)calloc(N + 2, sizeof *t) + 2, *f = (void *)trtfake_entry;
    for (int i = 0; i < N; i++, p += 32) {
        struct slot *s = malloc(sizeof *s); *s = (struct slot){ k, inner, i };
        memcpy(p, "\x48\xb8", 2); memcpy(p + 2, &s, 8); memcpy(p + 10, "\x49\xbb", 2); memcpy(p + 12, &f, 8); memcpy(p + 20, "\x41\xff\xe3", 3);
        t[i] = p; }
    return tabs[k][inner] = t; }
static O *make(enum kind k) {
    O *o = calloc(1, sizeof *o); o->kind = k; o->vt = vtable(k, 0); o->ivt = vtable(k, 1); o->impl = &o->ivt; live[k]++; return o; }

/* ------------------------------------------------------------------------ factories --- */
void *createInferBuilder_INTERNAL(void *logger, int32_t v) { (void)v; if (failing("builder")) return 0; O *o = make(K_BUILDER); o->logger = logger; return o; }
void *createInferRuntime_INTERNAL(void *logger, int32_t v) { (void)v; if (failing("runtime")) return 0; O *o = make(K_RUNTIME); o->logger = logger; return o; }
void *createInferRefitter_INTERNAL(void *e, void *l, int32_t v) { (void)e; (void)l; (void)v; return 0; }
void *createNvOnnxParser_INTERNAL(void *net, void *l, int v) { (void)v; if (failing("parser")) return 0; O *o = make(K_PARSER); o->net = net; o->logger = l; return o; }
void *createNvOnnxParserRefitter_INTERNAL(void *a, void *b, int v) { (void)a; (void)b; (void)v; return 0; }
void *getBuilderPluginRegistry(int c) { (void)c; return 0; }
void *getPluginRegistry(void) { return 0; }
int getNvOnnxParserVersion(void) { return 101601; }
_Bool initLibNvInferPlugins(void *l, const char *n) { (void)l; (void)n; return 1; }
long trtfake_live(int kind) { return kind >= 0 && kind < K_N ? live[kind] : -1; }
