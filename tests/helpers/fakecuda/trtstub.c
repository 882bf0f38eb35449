/* A link-time double for libnvinfer, libnvonnxparser and libnvinfer_plugin of any version: every factory returns
 * NULL.  The genuine bindings wheel can then be imported, with all of its classes and enumerations, and nothing
 * can be built with it.  Used for the import tests on TensorRT 11, which has no calibrators.
 */
#define FACTORY(name) void *name(void) { return 0; }
FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)
int getNvOnnxParserVersion(void) { return 0; }
_Bool initLibNvInferPlugins(void *logger, const char *ns) { (void)logger; (void)ns; return 1; }
